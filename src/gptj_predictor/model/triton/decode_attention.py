"""Attention of single new tokens to a paged KV cache, split over the context.

New queries and the outputs are ``[tokens, heads, head_size]``, and the cached keys and values
``[pages, page_size, heads, head_size]``. Any strides do between tokens and between heads of the
first, and between pages and between tokens of the others, equal for keys and values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from gptj_predictor.common.kernel_configs import KERNEL_CONFIGS

_CONFIG = KERNEL_CONFIGS["_attend"]
_MAX_SPLITS = _CONFIG.sizes["max_splits"]


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
    splits, wanted = 1, _CONFIG.sizes["programs_per_processor"] * processors
    while splits < _MAX_SPLITS and sequences * heads * splits < wanted:
        splits *= 2
    return splits


class DecodeScratch:
    """Memory that the programs of :func:`decode_attention` share; one launch at a time may use it.

    Attributes:
        parts: ``[programs, head_size]`` fp32, what each split found.
        log_sums: ``[programs]`` fp32, binary logarithms of the splits' sums.
        arrivals: ``[programs]`` int32, how many splits of a head are done; 0 between launches.
    """

    def __init__(self, programs: int, head_size: int, device: torch.device) -> None:
        """Room for ``programs``, that is sequences times heads times splits."""
        self.programs = programs
        self.parts = torch.empty(programs, head_size, dtype=torch.float32, device=device)
        self.log_sums = torch.empty(programs, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(programs, dtype=torch.int32, device=device)

    @classmethod
    def enough_for(cls, processors: int, head_size: int, device: torch.device) -> DecodeScratch:
        """For every launch with :func:`splits_for`'s splits, whatever the batch."""
        return cls(2 * _CONFIG.sizes["programs_per_processor"] * processors, head_size, device)


def decode_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_tables: torch.Tensor,
    lengths: torch.Tensor,
    out: torch.Tensor,
    splits: int,
    scratch: DecodeScratch,
) -> None:
    """Attention of one new token per sequence to the cached tokens of its sequence.

    A program takes an equal share of one sequence's tokens for one head; the last one that is done
    merges the shares, in their order, so that the result does not depend on who that is. One
    launch, which depends on shapes and ``splits`` alone: captured in a CUDA graph, it may be
    replayed with other lengths and tables. Nothing past a length is read.

    Args:
        queries: Of D sequences, rotated.
        keys: The cache's.
        values: The cache's.
        page_tables: ``[D, P]`` int32, each sequence's pages in order, and these contiguous.
        lengths: ``[D]`` integers, contiguous: tokens to attend to, from 1 to ``P * page_size``. A
            0, for padding, reads nothing and leaves that sequence's ``out`` undefined.
        out: Like ``queries``, to write to.
        splits: Shares per sequence: :func:`splits_for`, or any other power of two up to 32.
        scratch: With room for all programs, where there is more than one split.

    Raises:
        ValueError: :func:`supports` rules out the head size or dtype, or strides are others, or
            the number of splits is, or ``scratch`` is too small.
    """
    sequences, heads, head_size = queries.shape
    _check(queries, keys, values)
    if out.dtype != queries.dtype or out.stride(-1) != 1:
        raise ValueError("out must be of the cache's dtype, each head's contiguous")
    if page_tables.stride(-1) != 1 or not lengths.is_contiguous():
        raise ValueError("lengths and each of page_tables must be contiguous")
    if not 1 <= splits <= _MAX_SPLITS or splits & (splits - 1):
        raise ValueError(f"splits must be a power of two up to {_MAX_SPLITS}, not {splits}")
    if splits > 1 and sequences * heads * splits > scratch.programs:
        raise ValueError(
            f"{sequences} sequences of {heads} heads in {splits} splits: the scratch memory is for "
            f"{scratch.programs} programs"
        )
    # Programs that run side by side take heads that lie side by side.
    _attend[(heads, splits, sequences)](
        *(queries, keys, values, page_tables, lengths, out),
        *(scratch.parts, scratch.log_sums, scratch.arrivals),
        *queries.stride()[:2],
        *keys.stride()[:2],
        page_tables.stride(0),
        *out.stride()[:2],
        **attend_options(head_size, keys.shape[1], splits, keys.itemsize),
    )


def attend_options(head_size: int, page_size: int, splits: int, value_bytes: int) -> dict[str, Any]:
    """What :func:`decode_attention` is compiled for."""
    fitting = _CONFIG.sizes["block_bytes"] // (head_size * value_bytes)
    return {
        "head_size": head_size,
        "page_size": page_size,
        "block": min(fitting, _CONFIG.sizes["max_block_tokens"]),
        # One variant for every number of splits: they are merged with the most of them in mind.
        "max_splits": 1 if splits == 1 else _MAX_SPLITS,
        "scale": math.log2(math.e) / math.sqrt(head_size),  # GPUs compute powers of 2, not of e
        "stages": _CONFIG.num_stages,
        "num_warps": _CONFIG.num_warps,
        # An instruction that multiplies and adds: the default until Triton 3.9, not after.
        "enable_fp_fusion": True,
    }


def _check(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
    head_size = queries.shape[-1]
    if not supports(head_size, queries.dtype):
        raise ValueError(f"no kernel for heads of {head_size} {queries.dtype} values")
    if keys.dtype != queries.dtype or queries.stride(-1) != 1:
        raise ValueError("queries must be of the cache's dtype, each head's contiguous")
    if keys.stride() != values.stride() or keys.stride()[2:] != (head_size, 1):
        raise ValueError("cached keys and values must have the same strides, heads side by side")


# Lengths are read one by one; in a step of an odd number of tokens they begin between 16 bytes, and
# another variant would be compiled for that while requests wait.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["lengths"]
)
def _attend(  # type: ignore[no-untyped-def]
    queries, keys, values, page_tables, lengths, out, parts, log_sums, arrivals,
    query_stride, query_head, page_stride, token_stride, table_stride, out_stride, out_head,
    head_size: tl.constexpr, page_size: tl.constexpr,
    block: tl.constexpr, max_splits: tl.constexpr, scale: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """One split of one sequence for one head.

    Each row of a block keeps a softmax of its own over every ``block``-th token, so that threads
    meet once, at the end, and not in every step.
    """
    head = tl.program_id(0)
    split, splits = tl.program_id(1), tl.num_programs(1)
    sequence = tl.program_id(2).to(tl.int64)
    length = tl.load(lengths + sequence).to(tl.int32)
    # An equal share in whole blocks. The last splits may get nothing, and do not take part.
    share = tl.cdiv(tl.cdiv(length, block), splits) * block
    first = split * share
    if first >= length:
        return
    column = tl.arange(0, head_size)
    query_row = queries + sequence * query_stride + head * query_head
    query = tl.load(query_row + column).to(tl.float32) * scale
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
    target = out + sequence * out_stride + head * out_head + column
    if max_splits == 1:
        tl.store(target, part.to(out.dtype.element_ty))
    else:
        filled = tl.cdiv(length, share)
        row = sequence * tl.num_programs(0) + head
        tl.store(parts + (row * splits + split) * head_size + column, part)
        tl.store(log_sums + row * splits + split, highest + tl.log2(total))
        # All threads have stored before one of them says so, and the last one's have seen it
        # before they read.
        tl.debug_barrier()
        arrived = tl.atomic_add(arrivals + row, 1, sem="acq_rel", scope="gpu")
        if arrived == filled - 1:
            tl.debug_barrier()
            tl.store(arrivals + row, 0)  # for the next launch
            merged = _merge(parts, log_sums, row * splits, filled, head_size, max_splits)
            tl.store(target, merged.to(out.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def _merge(  # type: ignore[no-untyped-def]
    parts, log_sums, first, filled, head_size: tl.constexpr, max_splits: tl.constexpr
):  # fmt: skip
    """All splits of one sequence for one head, read past the first cache, which others' lack."""
    split = tl.arange(0, max_splits)
    column = tl.arange(0, head_size)
    known = split < filled
    index = first + split
    log_sum = tl.load(log_sums + index, mask=known, other=float("-inf"), cache_modifier=".cg")
    part = tl.load(
        parts + index[:, None] * head_size + column[None, :],
        mask=known[:, None], other=0.0, cache_modifier=".cg",
    )  # fmt: skip
    weight = tl.exp2(log_sum - tl.max(log_sum, axis=0))
    return tl.sum(part * weight[:, None], axis=0) / tl.sum(weight, axis=0)
