"""What lies between a layer's first product and attention: rotary, cache write and GELU."""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from gptj_predictor.model.triton.decode_attention import supports

#: The MLP's values of one program: 16 for each of 32 threads, two accesses of 16 bytes at 16 bits.
_BLOCK = 512


def rotate_store_activate(
    projected: torch.Tensor,
    rotations: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    gelu: bool,
) -> None:
    """Rotate queries and keys, write keys and values to the cache, activate the MLP. One launch.

    The first ``rotary_dim`` values of a head are rotated, neighbor with neighbor, in fp32. GELU is
    its tanh approximation: Hendrycks and Gimpel, Gaussian Error Linear Units (2016), section 2.

    Args:
        projected: ``[T, 3 heads head_size + I]``, changed in place: queries, keys, values, and the
            MLP's values. Rows may be apart, values are side by side.
        rotations: ``[P, rotary_dim / 2]`` complex64, contiguous: the unit numbers of all positions.
        positions: ``[T]`` integers below P, contiguous.
        slot_mapping: ``[T]`` integers, contiguous: ``page * page_size + offset`` of each token. Of
            two tokens with one slot, either may be left there.
        keys: The cache's, ``[pages, page_size, heads, head_size]``. Pages and their tokens may be
            apart, by the same strides in keys and values.
        values: The cache's.
        gelu: Whether the MLP's values are activated; they stay as they are otherwise.

    Raises:
        ValueError: :func:`supports` rules out the head size or dtype, or strides are others.
    """
    heads, head_size = keys.shape[2:]
    hidden = heads * head_size
    if not supports(head_size, projected.dtype):
        raise ValueError(f"no kernel for heads of {head_size} {projected.dtype} values")
    if keys.dtype != projected.dtype or projected.stride(-1) != 1:
        raise ValueError("projected must be of the cache's dtype, each token's contiguous")
    if keys.stride() != values.stride() or keys.stride()[2:] != (head_size, 1):
        raise ValueError("cached keys and values must have the same strides, heads side by side")
    if not all(x.is_contiguous() for x in (rotations, positions, slot_mapping)):
        raise ValueError("rotations, positions and slot_mapping must be contiguous")
    inner = projected.shape[1] - 3 * hidden if gelu else 0
    if not (tokens := projected.shape[0]):
        return
    options = rotary_options(heads, head_size, 2 * rotations.shape[1], inner, keys.shape[1])
    _rotate_store_activate[(tokens * options["parts"],)](
        *(projected, torch.view_as_real(rotations), positions, slot_mapping, keys, values),
        projected.stride(0),
        *keys.stride()[:2],
        **options,
    )


def rotary_options(
    heads: int, head_size: int, rotary_dim: int, inner: int, page_size: int
) -> dict[str, Any]:
    """What :func:`rotate_store_activate` is compiled for, ``inner`` of the MLP's values included.

    ``parts`` is the number of programs per token: one for each head, the others for the MLP.
    """
    return {
        "heads": heads,
        "head_size": head_size,
        "rotary_dim": rotary_dim,
        "page_size": page_size,
        "inner": inner,
        "parts": heads + -(-inner // _BLOCK),
        "block": _BLOCK,
        "num_warps": 1,  # a thread's share of 256 16-bit values is then one 16-byte access
        "enable_fp_fusion": True,
    }


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_store_activate(  # type: ignore[no-untyped-def]
    projected, rotations, positions, slot_mapping, keys, values,
    row_stride, page_stride, token_stride,
    heads: tl.constexpr, head_size: tl.constexpr, rotary_dim: tl.constexpr,
    page_size: tl.constexpr, inner: tl.constexpr, parts: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One head of one token, or a block of its MLP's values."""
    # Offsets into the cache, and into a long prefill, exceed 32 bits.
    token = (tl.program_id(0) // parts).to(tl.int64)
    part = tl.program_id(0) % parts
    hidden: tl.constexpr = heads * head_size
    row = projected + token * row_stride
    if part < heads:
        slot = tl.load(slot_mapping + token).to(tl.int64)
        place = slot // page_size * page_stride + slot % page_size * token_stride
        turns = rotations + tl.load(positions + token).to(tl.int64) * rotary_dim
        head = part * head_size
        _rotate_and_store(
            row + head, turns, keys + place + head, values + place + head,
            hidden, head_size, rotary_dim,
        )  # fmt: skip
    else:
        _activate(row + 3 * hidden, (part - heads) * block, inner, block)


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_and_store(  # type: ignore[no-untyped-def]
    query, turns, key_target, value_target,
    hidden: tl.constexpr, head_size: tl.constexpr, rotary_dim: tl.constexpr,
):  # fmt: skip
    """One head: its query and its key in place, key and value to the cache."""
    column = tl.arange(0, head_size)
    in_rotary = column < rotary_dim
    turn = tl.load(turns + column, mask=in_rotary, other=0.0)
    queries = tl.load(query + column, mask=in_rotary, other=0.0)
    keys = tl.load(query + hidden + column)
    values = tl.load(query + 2 * hidden + column)
    keys = tl.where(in_rotary, _turned(keys, turn, head_size), keys)
    tl.store(key_target + column, keys)
    tl.store(value_target + column, values)
    tl.store(query + column, _turned(queries, turn, head_size), mask=in_rotary)
    tl.store(query + hidden + column, keys, mask=in_rotary)


@triton.jit  # type: ignore[untyped-decorator]
def _activate(values, first, inner: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block of the MLP's values, in place."""
    column = first + tl.arange(0, block)
    x = tl.load(values + column, mask=column < inner, other=0.0)
    tl.store(values + column, _gelu(x.to(tl.float32)).to(x.dtype), mask=column < inner)


@triton.jit  # type: ignore[untyped-decorator]
def _turned(x, turn, head_size: tl.constexpr):  # type: ignore[no-untyped-def]
    """The product of two vectors of complex numbers, real and imaginary parts side by side."""
    real, imaginary = tl.split(tl.reshape(x.to(tl.float32), (head_size // 2, 2)))
    cosine, sine = tl.split(tl.reshape(turn, (head_size // 2, 2)))
    pairs = tl.join(real * cosine - imaginary * sine, real * sine + imaginary * cosine)
    return tl.reshape(pairs, (head_size,)).to(x.dtype)


@triton.jit
def _gelu(x):  # type: ignore[no-untyped-def]
    """``x / 2 (1 + tanh(u))``, which is ``x / (1 + exp(-2 u))``."""
    double_u = 1.5957691216057308 * x * (1.0 + 0.044715 * x * x)  # 2 sqrt(2 / pi)
    return x / (1.0 + tl.exp(-double_u))
