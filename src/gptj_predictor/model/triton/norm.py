"""A layer's norm, which also adds the bias of the layer's last product to the residual."""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


def normalize_and_add(
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    addend: torch.Tensor,
) -> torch.Tensor:
    """The layer norm of the residual; ``addend`` is added to the residual itself. One launch.

    The second product adds to the residual in place, so its bias has to be there before; this
    kernel has the residual in its registers anyway. Sums are in fp32.

    Args:
        residual: ``[T, H]`` contiguous, changed in place after it was read.
        weight: ``[H]`` of the norm.
        bias: ``[H]`` of the norm.
        epsilon: Added to the variance.
        addend: ``[H]``.

    Returns:
        ``[T, H]`` of the residual as it was.

    Raises:
        ValueError: a tensor is not contiguous.
    """
    if not all(x.is_contiguous() for x in (residual, weight, bias, addend)):
        raise ValueError("residual, weight, bias and addend must be contiguous")
    out = torch.empty_like(residual)
    tokens, hidden = residual.shape
    if tokens:
        _normalize_and_add[(tokens,)](
            residual, weight, bias, addend, out, epsilon, **norm_options(hidden)
        )
    return out


def norm_options(hidden: int) -> dict[str, Any]:
    """What :func:`normalize_and_add` is compiled for: at most 32 values per thread."""
    block = triton.next_power_of_2(hidden)
    warps = min(max(block // 512, 1), 16)
    return {"hidden": hidden, "block": block, "num_warps": warps, "enable_fp_fusion": True}


@triton.jit  # type: ignore[untyped-decorator]
def _normalize_and_add(  # type: ignore[no-untyped-def]
    residual, weight, bias, addend, out, epsilon,
    hidden: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One token. A variance is the mean of squared differences, which loses nothing."""
    column = tl.arange(0, block)
    inside = column < hidden
    place = tl.program_id(0).to(tl.int64) * hidden + column
    x = tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    more = tl.load(addend + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / hidden
    difference = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(difference * difference, axis=0) / hidden
    normed = difference * (1.0 / tl.sqrt_rn(variance + epsilon)) * scale + shift
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=inside)
    tl.store(residual + place, (x + more).to(residual.dtype.element_ty), mask=inside)
