"""Whether Triton can compile and launch here. Importing it needs Triton."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from gptj_predictor.common.kernel_configs import KERNEL_CONFIGS


def try_kernel(device: torch.device) -> None:
    """Compile a tiny kernel, launch it and look at what it gave.

    Raises:
        Exception: of Triton's, of the C compiler's or of the driver's, whatever is in the way.
        RuntimeError: the kernel gave something else than it should.
    """
    count = KERNEL_CONFIGS["_add_one"].sizes["count"]
    values = torch.arange(count, dtype=torch.float32, device=device)
    with torch.cuda.device_of(values):  # Triton launches on the current device
        add_one(values)
    if values.tolist() != list(range(1, count + 1)):
        raise RuntimeError(f"a kernel that adds one to {count} numbers gave others")


def add_one(values: torch.Tensor) -> None:
    """Add one to each of the trial's numbers, fp32, in place."""
    config = KERNEL_CONFIGS["_add_one"]
    _add_one[(1,)](values, count=config.sizes["count"], num_warps=config.num_warps)


@triton.jit  # type: ignore[untyped-decorator]
def _add_one(values, count: tl.constexpr):  # type: ignore[no-untyped-def]
    place = values + tl.arange(0, count)
    tl.store(place, tl.load(place) + 1)
