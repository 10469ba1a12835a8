"""Triton kernels for GPUs: rotary with the cache write, and attention of single new tokens.

Both are bound by memory: they read every byte once, in wide loads, and compute in fp32 between.
Kernels launch on the current CUDA device, which has to be the tensors' own.

New queries, keys and values and the outputs are ``[tokens, heads, head_size]``, and the cached keys
and values ``[pages, page_size, heads, head_size]``. Any strides do between tokens and between heads
of the first, and between pages and between tokens of the others, equal for keys and values.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from gptj_predictor.model.kernel_configs import KERNEL_CONFIGS

_ROTATE_AND_STORE, _ATTEND, _MERGE = (
    KERNEL_CONFIGS[name] for name in ("_rotate_and_store", "_attend", "_merge")
)
_MAX_SPLITS = _ATTEND.sizes["max_splits"]
#: A multiplication and an addition in one instruction: the default until Triton 3.9, not after.
_OPTIONS = {"enable_fp_fusion": True}


def supports(head_size: int, dtype: torch.dtype) -> bool:
    """Whether the kernels here work on heads of this size and values of this dtype."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32)
    return head_size in (16, 32, 64, 128, 256) and dtype in dtypes


def splits_for(sequences: int, heads: int, processors: int) -> int:
    """How many splits :func:`decode_attention` should make: a power of two, at most 32.

    Three programs per multiprocessor, each with blocks of keys and values on their way, keep the
    memory busy. Doubling until there are that many ends below six, about as many as run at once;
    more would only add outputs to merge. Lengths play no part, so that a CUDA graph stays good.
    """
    splits, wanted = 1, _ATTEND.sizes["programs_per_processor"] * processors
    while splits < _MAX_SPLITS and sequences * heads * splits < wanted:
        splits *= 2
    return splits


def rotate_and_store(
    queries: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    rotations: torch.Tensor,
    slot_mapping: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """Rotate queries and keys in place; write keys and values to the cache. One launch.

    The first ``rotary_dim`` values of a head are rotated, neighbor with neighbor, in fp32.

    Args:
        queries: Of T tokens, changed in place.
        new_keys: Changed in place too.
        new_values: Left as they are. All three have the same strides.
        rotations: ``[T, rotary_dim / 2]`` complex64, contiguous: every token's unit numbers.
        slot_mapping: ``[T]`` int64, contiguous: ``page * page_size + offset`` of each token. Of two
            tokens with one slot, either may be left there.
        keys: The cache's.
        values: The cache's.

    Raises:
        ValueError: :func:`supports` rules out the head size or dtype, or strides are others.
    """
    tokens, heads, head_size = queries.shape
    _check(queries, keys, values)
    if not queries.stride() == new_keys.stride() == new_values.stride():
        raise ValueError("queries, keys and values must have the same strides")
    if not (rotations.is_contiguous() and slot_mapping.is_contiguous()):
        raise ValueError("rotations and slot_mapping must be contiguous")
    _rotate_and_store[(tokens * heads,)](
        *(queries, new_keys, new_values, torch.view_as_real(rotations), slot_mapping, keys, values),
        *queries.stride()[:2],
        *keys.stride()[:2],
        heads=heads,
        head_size=head_size,
        rotary_dim=2 * rotations.shape[1],
        page_size=keys.shape[1],
        num_warps=_ROTATE_AND_STORE.num_warps,
        **_OPTIONS,
    )


def decode_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_tables: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor,
    splits: int,
) -> None:
    """Attention of one new token per sequence to the cached tokens of its sequence.

    A program takes an equal share of one sequence's tokens for one head; with more than one split,
    a second kernel merges the shares. Launches depend on shapes and ``splits`` alone: captured in
    a CUDA graph, they may be replayed with other lengths and tables. Nothing past a length is read.

    Args:
        queries: Of D sequences, rotated.
        keys: The cache's.
        values: The cache's.
        page_tables: ``[D, P]`` int32, each sequence's pages in order, and these contiguous.
        lengths: ``[D]`` int32, contiguous: tokens to attend to, from 1 to ``P * page_size``. A 0,
            for padding, reads nothing and leaves that sequence's ``out`` undefined.
        out: Like ``queries``, to write to.
        splits: Shares per sequence: :func:`splits_for`, or any other power of two up to 32.

    Raises:
        ValueError: As :func:`rotate_and_store`, or for another number of splits.
    """
    sequences, heads, head_size = queries.shape
    _check(queries, keys, values)
    if out.dtype != queries.dtype or out.stride(-1) != 1:
        raise ValueError("out must be of the cache's dtype, each head's contiguous")
    if page_tables.stride(-1) != 1 or not lengths.is_contiguous():
        raise ValueError("lengths and each of page_tables must be contiguous")
    if not 1 <= splits <= _MAX_SPLITS or splits & (splits - 1):
        raise ValueError(f"splits must be a power of two up to {_MAX_SPLITS}, not {splits}")
    parts, log_sums = out, None
    if splits > 1:
        shape = (sequences, heads, splits)
        parts = torch.empty((*shape, head_size), dtype=torch.float32, device=out.device)
        log_sums = torch.empty(shape, dtype=torch.float32, device=out.device)
    row_bytes = head_size * keys.itemsize
    block = min(_ATTEND.sizes["block_bytes"] // row_bytes, _ATTEND.sizes["max_block_tokens"])
    sizes = {"head_size": head_size, "block": block, "splits": splits} | _OPTIONS
    # Programs that run side by side take heads that lie side by side.
    _attend[(heads, splits, sequences)](
        *(queries, keys, values, page_tables, lengths, parts, log_sums),
        *queries.stride()[:2],
        *keys.stride()[:2],
        page_tables.stride(0),
        *out.stride()[:2],
        page_size=keys.shape[1],
        scale=math.log2(math.e) / math.sqrt(head_size),  # GPUs compute powers of 2, not of e
        stages=_ATTEND.num_stages,
        num_warps=_ATTEND.num_warps,
        **sizes,
    )
    if splits > 1:
        _merge[(heads, sequences)](
            *(parts, log_sums, lengths, out, *out.stride()[:2]),
            num_warps=_MERGE.num_warps,
            **sizes,
        )


def _check(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    head_size = queries.shape[-1]
    if not supports(head_size, queries.dtype):
        raise ValueError(f"no kernel for heads of {head_size} {queries.dtype} values")
    if keys.dtype != queries.dtype or queries.stride(-1) != 1:
        raise ValueError("queries must be of the cache's dtype, each head's contiguous")
    if keys.stride() != values.stride() or keys.stride()[2:] != (head_size, 1):
        raise ValueError("cached keys and values must have the same strides, heads side by side")


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_and_store(  # type: ignore[no-untyped-def]
    queries, new_keys, new_values, rotations, slot_mapping, keys, values,
    new_stride, head_stride, page_stride, token_stride,
    heads: tl.constexpr, head_size: tl.constexpr, rotary_dim: tl.constexpr, page_size: tl.constexpr,
):  # fmt: skip
    """One head of one token."""
    # Offsets into the cache, and into a long prefill, exceed 32 bits.
    token = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    column = tl.arange(0, head_size)
    source = token * new_stride + head * head_stride + column
    slot = tl.load(slot_mapping + token)
    place = slot // page_size * page_stride + slot % page_size * token_stride
    target = place + head * head_size + column
    tl.store(values + target, tl.load(new_values + source))

    in_rotary = column < rotary_dim
    turn = tl.load(rotations + token * rotary_dim + column, mask=in_rotary, other=0.0)
    query = tl.load(queries + source, mask=in_rotary, other=0.0)
    tl.store(queries + source, _turned(query, turn, head_size), mask=in_rotary)
    key = tl.load(new_keys + source)
    key = tl.where(in_rotary, _turned(key, turn, head_size), key)
    tl.store(keys + target, key)
    tl.store(new_keys + source, key, mask=in_rotary)


@triton.jit  # type: ignore[untyped-decorator]
def _turned(x, turn, head_size: tl.constexpr):  # type: ignore[no-untyped-def]
    """The product of two vectors of complex numbers, real and imaginary parts side by side."""
    real, imaginary = tl.split(tl.reshape(x.to(tl.float32), (head_size // 2, 2)))
    cosine, sine = tl.split(tl.reshape(turn, (head_size // 2, 2)))
    pairs = tl.join(real * cosine - imaginary * sine, real * sine + imaginary * cosine)
    return tl.reshape(pairs, (head_size,)).to(x.dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _tokens_per_split(length, block: tl.constexpr, splits: tl.constexpr):  # type: ignore[no-untyped-def]
    """An equal share of a sequence, in whole blocks. The last splits may get nothing."""
    return tl.cdiv(tl.cdiv(length, block), splits) * block


@triton.jit(do_not_specialize=["table_stride"])  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    queries, keys, values, page_tables, lengths, parts, log_sums,
    query_stride, query_head, page_stride, token_stride, table_stride, out_stride, out_head,
    head_size: tl.constexpr, page_size: tl.constexpr,
    block: tl.constexpr, splits: tl.constexpr, scale: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """One split of one sequence for one head.

    Each row of a block keeps a softmax of its own over every ``block``-th token, so that threads
    meet once, at the end, and not in every step.
    """
    head = tl.program_id(0)
    split = tl.program_id(1)
    sequence = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths + sequence)
    share = _tokens_per_split(length, block, splits)
    first = split * share
    if first >= length:
        return
    column = tl.arange(0, head_size)
    query = tl.load(queries + sequence * query_stride + head * query_head + column)
    query = query.to(tl.float32) * scale
    table = page_tables + sequence * table_stride
    maxima = tl.full((block,), -1e38, tl.float32)  # finite, as infinities' difference is NaN
    sums = tl.full((block,), 0.0, tl.float32)
    mixed = tl.full((block, head_size), 0.0, tl.float32)
    end = tl.minimum(first + share, length)
    # With three stages, the next two blocks are on their way while one is worked on.
    for start in tl.range(first, end, block, num_stages=stages):
        token = start + tl.arange(0, block)
        known = token < length
        page = tl.load(table + token // page_size, mask=known, other=0).to(tl.int64)
        place = page * page_stride + (token % page_size).to(tl.int64) * token_stride
        offset = (place + head * head_size)[:, None] + column[None, :]
        key = tl.load(keys + offset, mask=known[:, None], other=0.0)
        value = tl.load(values + offset, mask=known[:, None], other=0.0)
        score = tl.sum(key.to(tl.float32) * query[None, :], axis=1)
        score = tl.where(known, score, float("-inf"))
        higher = tl.maximum(maxima, score)
        fade = tl.exp2(maxima - higher)
        weight = tl.exp2(score - higher)
        sums = sums * fade + weight
        mixed = mixed * fade[:, None] + weight[:, None] * value.to(tl.float32)
        maxima = higher

    highest = tl.max(maxima, axis=0)
    fade = tl.exp2(maxima - highest)
    total = tl.sum(sums * fade, axis=0)
    part = tl.sum(mixed * fade[:, None], axis=0) / total
    if splits == 1:
        target = parts + sequence * out_stride + head * out_head
    else:
        index = (sequence * tl.num_programs(0) + head) * splits + split
        target = parts + index * head_size
        tl.store(log_sums + index, highest + tl.log2(total))
    tl.store(target + column, part.to(parts.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def _merge(  # type: ignore[no-untyped-def]
    parts, log_sums, lengths, out, out_stride, out_head,
    head_size: tl.constexpr, block: tl.constexpr, splits: tl.constexpr,
):  # fmt: skip
    """All splits of one sequence for one head."""
    head = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + sequence)
    split = tl.arange(0, splits)
    column = tl.arange(0, head_size)
    # The others were never written.
    filled = split * _tokens_per_split(length, block, splits) < length
    index = (sequence * tl.num_programs(0) + head) * splits + split
    log_sum = tl.load(log_sums + index, mask=filled, other=float("-inf"))
    part = tl.load(
        parts + index[:, None] * head_size + column[None, :], mask=filled[:, None], other=0.0
    )
    weight = tl.exp2(log_sum - tl.max(log_sum, axis=0))
    mixed = tl.sum(part * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(out + sequence * out_stride + head * out_head + column, mixed.to(out.dtype.element_ty))
