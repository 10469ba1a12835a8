"""The Triton kernels of matrix products, launched on the current CUDA device, the tensors' own."""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from gptj_predictor.common.kernel_configs import KERNEL_CONFIGS
from gptj_predictor.model.layer_norm import LayerNorm
from gptj_predictor.model.triton_linear.cuts import Cut, ProductShape

#: A multiplication and an addition in one instruction: the default until Triton 3.9, not after.
_OPTIONS = {"enable_fp_fusion": True}
_DEQUANTIZE = KERNEL_CONFIGS["_dequantize"]
#: Values of all rows of a tile whose mean and variance are summed at a time.
_STATISTICS_BLOCK = 2048


class SplitScratch:
    """Memory that the programs of one product meet in; products may share it one after another.

    Attributes:
        sums: fp32, what each split found.
        arrivals: int32, how many splits of a tile are done; 0 between launches.
    """

    def __init__(self, sums: int, tiles: int, device: torch.device) -> None:
        """Room for ``sums`` values in all, and for ``tiles`` tiles."""
        self.sums = torch.empty(sums, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(tiles, dtype=torch.int32, device=device)

    def holds(self, cut: Cut, shape: ProductShape) -> bool:
        """Whether there is room for a product's splits."""
        sums, tiles = cut.scratch_values(shape), cut.tiles(shape)
        return self.sums.numel() >= sums and self.arrivals.numel() >= tiles


def multiply(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    cut: Cut,
    *,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    norm: LayerNorm | None = None,
    gelu_from: int | None = None,
    residual: torch.Tensor | None = None,
    scratch: SplitScratch | None = None,
) -> None:
    """``norm(x) W^T * scale + bias``, then GELU, then the residual, in one launch.

    Sums are in fp32. With splits, each program sums a part of the inputs and the last one of a tile
    adds the parts up in their order, so that the result does not depend on which one that is. What
    is launched depends on shapes and ``cut`` alone, so a CUDA graph may replay it.

    Args:
        x: ``[T, inputs]``, each row contiguous.
        weight: ``[outputs, inputs]`` contiguous: of ``x``'s dtype, or int8.
        out: ``[T, outputs]``, each row contiguous, of any floating dtype.
        cut: How the work is cut into programs.
        scale: ``[outputs]`` fp32, for int8 weights.
        bias: ``[outputs]``.
        norm: Done to ``x`` first, and rounded to its dtype.
        gelu_from: The first output whose value goes through GELU, by its tanh approximation
            (Hendrycks and Gimpel, 2016); all later ones do too. ``None`` for no output.
        residual: ``[T, outputs]``, added at the end; may be ``out``.
        scratch: With room for ``cut``, if that may be split.

    Raises:
        ValueError: shapes, dtypes or strides are others, or ``scratch`` is too small or missing.
    """
    shape = ProductShape.of(x, weight)
    _check(x, weight, out, residual, shape)
    if (scale is None) is (weight.dtype is torch.int8):
        raise ValueError(f"a weight of {weight.dtype} has a scale if, and only if, it is int8")
    if cut.tensor_cores and x.dtype is torch.float32:
        raise ValueError("tensor cores multiply 16-bit values here, not float32")
    if not len(x):
        return
    tiles = cut.tiles(shape)
    if not cut.may_split:
        scratch = None
    elif scratch is None or (cut.splits > 1 and not scratch.holds(cut, shape)):
        raise ValueError(f"{cut.splits} splits of {tiles} tiles want a larger scratch")
    vectors = (norm.weight, norm.bias) if norm else (None, None)
    sums, arrivals = (scratch.sums, scratch.arrivals) if scratch else (None, None)
    _multiply[(tiles, cut.splits)](
        *(x, weight, scale, bias, *vectors, residual, out, sums, arrivals),
        *(shape.rows, shape.outputs, shape.inputs),
        *(x.stride(0), residual.stride(0) if residual is not None else 0, out.stride(0)),
        shape.outputs if gelu_from is None else gelu_from,
        norm.epsilon if norm else 0.0,
        cut.splits,
        **launch_options(cut, shape),
    )


def launch_options(cut: Cut, shape: ProductShape) -> dict[str, Any]:
    """What :func:`multiply`'s kernel is compiled for, beside dtypes and what is ``None``."""
    return {
        "block_rows": cut.block_rows,
        "block_outputs": cut.block_outputs,
        "block_inputs": cut.block_inputs,
        "tensor_cores": cut.tensor_cores,
        "whole_inputs": shape.inputs % cut.block_inputs == 0,
        "statistics_block": max(_STATISTICS_BLOCK // cut.block_rows, 64),
        "stages": cut.num_stages,
        "num_warps": cut.num_warps,
        "maxnreg": cut.max_registers,
        **_OPTIONS,
    }


def dequantize(weight: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    """``weight * scale``, rounded to ``out``'s dtype. One launch.

    Args:
        weight: ``[outputs, inputs]`` int8, contiguous.
        scale: ``[outputs]`` fp32, contiguous.
        out: ``[outputs, inputs]`` contiguous.

    Raises:
        ValueError: a tensor is not contiguous, or of another shape.
    """
    if not (weight.is_contiguous() and scale.is_contiguous() and out.is_contiguous()):
        raise ValueError("weight, scale and out must be contiguous")
    if weight.shape != out.shape or scale.shape != weight.shape[:1]:
        raise ValueError("weight and out must be [outputs, inputs], and scale [outputs]")
    outputs, inputs = weight.shape
    grid = outputs, triton.cdiv(inputs, _DEQUANTIZE.sizes["block"])
    _dequantize[grid](weight, scale, out, inputs, **dequantize_options())


def dequantize_options() -> dict[str, Any]:
    """What :func:`dequantize`'s kernel is compiled for, beside dtypes: 16 values per thread."""
    return {"block": _DEQUANTIZE.sizes["block"], "num_warps": _DEQUANTIZE.num_warps, **_OPTIONS}


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    residual: torch.Tensor | None,
    shape: ProductShape,
) -> None:
    if x.shape != (shape.rows, shape.inputs) or not weight.is_contiguous():
        raise ValueError(
            f"x must be [T, {shape.inputs}], not {[*x.shape]}, and the weight contiguous"
        )
    if weight.dtype not in (x.dtype, torch.int8):
        raise ValueError(f"the weight must be of {x.dtype} or int8, not {weight.dtype}")
    for name, result in (("out", out), ("residual", residual)):
        if result is not None and result.shape != (shape.rows, shape.outputs):
            wanted = [shape.rows, shape.outputs]
            raise ValueError(f"{name} must be {wanted}, not {[*result.shape]}")
    if not all(y is None or y.stride(-1) == 1 for y in (x, out, residual)):
        raise ValueError("each row of x, out and residual must be contiguous")


# What differs between launches and changes nothing in a loop is no constant: each further variant
# would have to be compiled, kept and loaded at a start.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["rows", "gelu_from", "splits"]
)
def _multiply(  # type: ignore[no-untyped-def]
    x, weight, scale, bias, norm_weight, norm_bias, residual, out, sums, arrivals,
    rows, outputs, inputs, x_stride, residual_stride, out_stride, gelu_from, epsilon, splits,
    block_rows: tl.constexpr, block_outputs: tl.constexpr, block_inputs: tl.constexpr,
    tensor_cores: tl.constexpr, whole_inputs: tl.constexpr,
    statistics_block: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """One split of one tile. Programs side by side take the rows of the same weights."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    row_blocks = tl.cdiv(rows, block_rows)
    row = (tile % row_blocks * block_rows + tl.arange(0, block_rows)).to(tl.int64)
    output = tile // row_blocks * block_outputs + tl.arange(0, block_outputs)
    in_rows = row < rows
    in_outputs = output < outputs
    x_row = x + row * x_stride
    # Past the last output its weights are read again, and what comes of them is not stored.
    weight_row = weight + tl.minimum(output, outputs - 1).to(tl.int64) * inputs
    if norm_weight is not None:
        mean, inverse = _statistics(x_row, in_rows, inputs, epsilon, block_rows, statistics_block)
    if tensor_cores:
        product = tl.zeros((block_outputs, block_rows), tl.float32)
    else:
        # Every thread sums on its own until the end.
        parts = tl.zeros((block_outputs, block_rows, block_inputs), tl.float32)
    share = tl.cdiv(tl.cdiv(inputs, block_inputs), splits) * block_inputs
    first = split * share
    last = tl.minimum(first + share, inputs)
    # With a number of stages, the next blocks are on their way while one is worked on.
    for start in tl.range(first, last, block_inputs, num_stages=stages):
        column = start + tl.arange(0, block_inputs)
        w = _block(weight_row, None, column, inputs, whole_inputs)
        a = _block(x_row, in_rows, column, inputs, whole_inputs)
        if norm_weight is not None:
            a = _normed(a, mean, inverse, norm_weight, norm_bias, column, inputs)
        if tensor_cores:
            product = tl.dot(w.to(a.dtype), tl.trans(a), product)
        else:
            parts += w.to(tl.float32)[:, None, :] * a.to(tl.float32)[None, :, :]
    if not tensor_cores:
        product = tl.sum(parts, axis=2)
    y = tl.trans(product)
    inside = in_rows[:, None] & in_outputs[None, :]
    if sums is not None:
        y, inside = _meet(y, inside, sums, arrivals, tile, split, splits, block_rows, block_outputs)
    y = _after(y, scale, bias, output, in_outputs, gelu_from)
    if residual is not None:
        place = residual + (row * residual_stride)[:, None] + output[None, :]
        y += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    place = out + (row * out_stride)[:, None] + output[None, :]
    tl.store(place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _normed(a, mean, inverse, weight, bias, column, columns):  # type: ignore[no-untyped-def]
    """Some columns of the layer norm of rows, in their dtype."""
    gain = tl.load(weight + column, mask=column < columns, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
    normed = (a.to(tl.float32) - mean[:, None]) * inverse[:, None]
    return (normed * gain[None, :] + shift[None, :]).to(a.dtype)


@triton.jit
def _after(  # type: ignore[no-untyped-def]
    y, scale, bias, output, in_outputs, gelu_from
):
    """What comes after the sums, but for the residual."""
    if scale is not None:
        y *= tl.load(scale + output, mask=in_outputs, other=0.0)[None, :]
    if bias is not None:
        y += tl.load(bias + output, mask=in_outputs, other=0.0).to(tl.float32)[None, :]
    return tl.where((output >= gelu_from)[None, :], _gelu(y), y)


@triton.jit  # type: ignore[untyped-decorator]
def _block(rows, in_rows, column, columns, whole_columns: tl.constexpr):  # type: ignore[no-untyped-def]
    """Some columns of a matrix whose rows begin at ``rows``; 0 outside of it and of ``in_rows``."""
    place = rows[:, None] + column[None, :]
    if whole_columns:
        if in_rows is None:
            values = tl.load(place)
        else:
            values = tl.load(place, mask=in_rows[:, None], other=0)
    else:
        inside = (column < columns)[None, :]
        if in_rows is not None:
            inside = inside & in_rows[:, None]
        values = tl.load(place, mask=inside, other=0)
    return values


@triton.jit  # type: ignore[untyped-decorator]
def _meet(  # type: ignore[no-untyped-def]
    y, inside, sums, arrivals, tile, split, splits,
    block_rows: tl.constexpr, block_outputs: tl.constexpr,
):  # fmt: skip
    """All splits' sums and where they are wanted, for a tile's last split; nowhere for others."""
    if splits > 1:
        area = sums + tile * (splits * block_rows * block_outputs)
        if _is_last(y, area, arrivals + tile, split, splits, block_rows, block_outputs):
            y = _sum_of(area, splits, block_rows, block_outputs)
        else:
            inside = inside & (splits < 0)
    return y, inside


@triton.jit  # type: ignore[untyped-decorator]
def _is_last(  # type: ignore[no-untyped-def]
    y, area, arrivals, split, splits, block_rows: tl.constexpr, block_outputs: tl.constexpr,
):  # fmt: skip
    """Leave a split's sums in its tile's area; whether all others are there."""
    tl.store(area + _places(split, block_rows, block_outputs), y)
    tl.debug_barrier()  # all threads' stores come before the one thread's arrival
    is_last = tl.atomic_add(arrivals, 1, sem="acq_rel") == splits - 1
    if is_last:
        tl.store(arrivals, 0)  # for the next launch
    return is_last


@triton.jit  # type: ignore[untyped-decorator]
def _sum_of(  # type: ignore[no-untyped-def]
    area, splits, block_rows: tl.constexpr, block_outputs: tl.constexpr
):
    """The splits' sums, added in their order, read past the cache that processors do not share."""
    # So many reads are on their way at once: the registers have room for no more.
    y = tl.zeros((block_rows, block_outputs), tl.float32)
    at_once: tl.constexpr = 8 if block_rows <= 16 else 4
    for first in range(0, splits, at_once):
        for more in tl.static_range(at_once):
            place = area + _places(first + more, block_rows, block_outputs)
            y += tl.load(place, mask=first + more < splits, other=0.0, cache_modifier=".cg")
    return y


@triton.jit  # type: ignore[untyped-decorator]
def _places(split, block_rows: tl.constexpr, block_outputs: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a split's sums in its tile's area."""
    row = split * block_rows + tl.arange(0, block_rows)
    return row[:, None] * block_outputs + tl.arange(0, block_outputs)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _statistics(  # type: ignore[no-untyped-def]
    x_row, in_rows, inputs, epsilon, block_rows: tl.constexpr, block: tl.constexpr
):
    """Mean and inverse deviation of rows, the variance from differences, which loses nothing."""
    total = tl.zeros((block_rows, block), tl.float32)
    for start in range(0, inputs, block):
        column = start + tl.arange(0, block)
        inside = in_rows[:, None] & (column < inputs)[None, :]
        total += tl.load(x_row[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=1) / inputs
    total = tl.zeros((block_rows, block), tl.float32)
    for start in range(0, inputs, block):
        column = start + tl.arange(0, block)
        inside = in_rows[:, None] & (column < inputs)[None, :]
        a = tl.load(x_row[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
        difference = tl.where(inside, a - mean[:, None], 0.0)
        total += difference * difference
    return mean, 1.0 / tl.sqrt_rn(tl.sum(total, axis=1) / inputs + epsilon)


@triton.jit
def _gelu(x):  # type: ignore[no-untyped-def]
    """``x / 2 (1 + tanh(u))``, which is ``x / (1 + exp(-2 u))``."""
    double_u = 1.5957691216057308 * x * (1.0 + 0.044715 * x * x)  # 2 sqrt(2 / pi)
    return x / (1.0 + tl.exp(-double_u))


# A part of the outputs begins between 16 bytes of scales, which are read one by one.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize_on_alignment=["scale"]
)
def _dequantize(weight, scale, out, inputs, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """A part of one output's weights."""
    output = tl.program_id(0)
    column = tl.program_id(1) * block + tl.arange(0, block)
    place = output.to(tl.int64) * inputs + column
    values = tl.load(weight + place, mask=column < inputs, other=0).to(tl.float32)
    values *= tl.load(scale + output)
    tl.store(out + place, values.to(out.dtype.element_ty), mask=column < inputs)
