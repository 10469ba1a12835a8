"""A step's tokens in one launch: finite check, minimum length, argmax or draw, token table.

For the rows that :mod:`gptj_predictor.sampling.rows` lets through, it gives what
:class:`gptj_predictor.sampling.sampler.Sampler` gives. Importing it needs Triton.

Nothing is sorted. What top-k, top-p and the draw ask is always: at which logit does a sum over all
larger ones reach a bound? That is found bit by bit, two bits in each pass over the row, which lies
in the processor's own cache after the first. Sums are of integers, so they do not depend on an
order: a probability is a fixed-point number with as many bits as let a whole row's sum fit 63.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from gptj_predictor.common.kernel_configs import KERNEL_CONFIGS
from gptj_predictor.sampling.rows import MAX_ENDS

_CONFIG = KERNEL_CONFIGS["_sample"]
#: Two bits of a logit's fp32 representation a pass: of bfloat16 the upper 16 decide, of float16 20.
_PASSES = {torch.bfloat16: 8, torch.float16: 10, torch.float32: 16}


def sample_rows(
    logits: torch.Tensor,
    *,
    seeds: torch.Tensor,
    temperatures: torch.Tensor,
    top_ps: torch.Tensor,
    log_min_ps: torch.Tensor,
    top_ks: torch.Tensor,
    ends: torch.Tensor,
    batch_indices: torch.Tensor,
    lengths: torch.Tensor,
    token_table: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Choose the next token of every row, and write it to the token table. One launch.

    Launches depend on shapes alone, so that a CUDA graph stays good.

    Args:
        logits: ``[N, vocabulary]`` contiguous, in bfloat16, float16 or float32. Those of a row's
            ``ends`` are overwritten.
        seeds: ``[N]``; this and the next five are :class:`RowFields`' on the device, contiguous.
        temperatures: ``[N]``.
        top_ps: ``[N]``.
        log_min_ps: ``[N]``.
        top_ks: ``[N]``.
        ends: ``[N, MAX_ENDS]``.
        batch_indices: ``[N]`` int64, contiguous: rows of ``token_table``.
        lengths: ``[N]`` int64, contiguous: tokens so far. The new one's position decides with the
            seed on the random number: see :func:`gptj_predictor.sampling.draws.uniform`.
        token_table: ``[batch, context]`` int64, contiguous. A token is written at its length, as 0
            where no logit is finite; beyond the context it is not written.
        out: ``[N]`` int64 for the tokens, contiguous; -1 where no logit is finite.

    Raises:
        ValueError: a tensor is not contiguous, or logits are of another dtype.
    """
    fields = seeds, temperatures, top_ps, log_min_ps, top_ks, ends, batch_indices, lengths
    if not all(x.is_contiguous() for x in (logits, *fields, token_table, out)):
        raise ValueError("logits, parameters, token_table and out must be contiguous")
    if logits.dtype not in _PASSES:
        raise ValueError(f"no kernel for {logits.dtype} logits")
    rows, vocabulary = logits.shape
    if not rows:
        return
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        _sample[(rows,)](
            logits,
            *fields,
            *(token_table, out, token_table.shape[1]),
            **sample_options(vocabulary, logits.dtype),
        )


def sample_options(vocabulary: int, dtype: torch.dtype) -> dict[str, Any]:
    """What :func:`sample_rows` is compiled for."""
    most = _CONFIG.sizes["bfloat16_block" if dtype is torch.bfloat16 else "block"]
    block = min(triton.next_power_of_2(vocabulary), most)
    warps = min(max(block // _CONFIG.sizes["values_per_warp"], 1), _CONFIG.num_warps)
    return {
        "vocabulary": vocabulary,
        "block": block,
        "passes": _PASSES[dtype],
        # The largest share is 1, and the sum of all at most the vocabulary.
        "one": 2.0 ** (62 - (vocabulary - 1).bit_length()),
        "max_ends": MAX_ENDS,
        "num_warps": warps,
        "enable_fp_fusion": False,  # differences of logits as the general path has them
    }


@triton.jit(do_not_specialize=["context"])  # type: ignore[untyped-decorator]
def _sample(  # type: ignore[no-untyped-def]
    logits, seeds, temperatures, top_ps, log_min_ps, top_ks, ends, batch_indices, lengths,
    token_table, out, context,
    vocabulary: tl.constexpr, block: tl.constexpr, passes: tl.constexpr, one: tl.constexpr,
    max_ends: tl.constexpr,
):  # fmt: skip
    """One row."""
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * vocabulary
    length = tl.load(lengths + index)
    highest, chosen, broken = _peak(row, vocabulary, block)
    finite = (broken == 0) & (highest < float("inf")) & (highest > float("-inf"))
    end = tl.load(ends + index * max_ends + tl.arange(0, max_ends))
    if tl.max(end, axis=0) >= 0:
        tl.store(row + end, float("-inf"), mask=end >= 0)
        tl.debug_barrier()  # other threads read them
        highest, chosen, broken = _peak(row, vocabulary, block)
    temperature = tl.load(temperatures + index)
    if finite & (temperature > 0) & (highest > float("-inf")):
        number = _random_bits(tl.load(seeds + index), length)
        chosen = _draw(
            row, highest, temperature, tl.load(top_ks + index), tl.load(top_ps + index),
            tl.load(log_min_ps + index), number, chosen, vocabulary, block, passes, one,
        )  # fmt: skip
    token = tl.where(finite, chosen, -1).to(tl.int64)
    tl.store(out + index, token)
    place = tl.load(batch_indices + index) * context + length
    tl.store(token_table + place, tl.maximum(token, 0), mask=length < context)


@triton.jit  # type: ignore[untyped-decorator]
def _peak(row, vocabulary: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest logit, the first token that has it, and whether one is not a number."""
    column = tl.arange(0, block)
    best = tl.full((block,), float("-inf"), tl.float32)
    where = column
    broken = tl.zeros((block,), tl.int32)
    for start in range(0, vocabulary, block):
        token = start + column
        x = tl.load(row + token, mask=token < vocabulary, other=float("-inf")).to(tl.float32)
        broken = broken | tl.where(x <= float("inf"), 0, 1)  # NaN is not
        where = tl.where(x > best, token, where)
        best = tl.where(x > best, x, best)
    highest = tl.max(best, axis=0)
    first = tl.min(tl.where(best == highest, where, vocabulary), axis=0)
    return highest, tl.minimum(first, vocabulary - 1), tl.max(broken, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _draw(  # type: ignore[no-untyped-def]
    row, highest, temperature, top_k, top_p, log_min_p, number, likeliest,
    vocabulary: tl.constexpr, block: tl.constexpr, passes: tl.constexpr, one: tl.constexpr,
):  # fmt: skip
    """A token of one row: see :func:`gptj_predictor.sampling.draws.draw`."""
    column = tl.arange(0, block)
    top = tl.div_rn(highest, temperature)
    floor = tl.full((), float("-inf"), tl.float32)
    if top_k > 0:
        floor = _reach(
            row, top_k, top, temperature, floor, vocabulary, block, passes, one, False
        )  # fmt: skip
        floor = tl.div_rn(floor, temperature)
        floor = tl.where(floor > float("-inf"), floor, float("-inf"))  # nor here
    # The least logit that top-p keeps, and the first token with just that logit: as in a stable
    # sort, of those that are equally likely the first are dropped.
    cut = tl.full((), float("-inf"), tl.float32)
    first_tie = 0
    if top_p < 1:
        total = _mass_from(row, floor, floor, 0, top, temperature, vocabulary, block, one)
        dropped = ((1.0 - top_p).to(tl.float64) * total.to(tl.float64)).to(tl.int64)
        cut = _reach(
            row, total - dropped, top, temperature, floor, vocabulary, block, passes, one, True
        )  # fmt: skip
        cut = tl.div_rn(tl.where(cut <= highest, cut, highest), temperature)
        least_mass = tl.maximum((tl.exp(cut - top) * one).to(tl.int64), 1)
        at_least = _mass_from(row, floor, cut, 0, top, temperature, vocabulary, block, one)
        ties = tl.zeros((block,), tl.int64)
        for start in range(0, vocabulary, block):
            x = _scaled(row, start + column, temperature, vocabulary)
            ties += (x == cut).to(tl.int64)
        below = total - at_least
        skipped = tl.minimum((dropped - below) // least_mass, tl.sum(ties, axis=0) - 1)
        if skipped > 0:
            seen = skipped * 0
            for start in range(0, vocabulary, block):
                x = _scaled(row, start + column, temperature, vocabulary)
                tie = (x == cut).to(tl.int64)
                rank = seen + tl.cumsum(tie, axis=0)
                found = (tie > 0) & (rank == skipped + 1)
                first_tie = tl.maximum(
                    first_tie, tl.max(tl.where(found, start + column, 0), axis=0)
                )
                seen += tl.sum(tie, axis=0)
    floor = tl.maximum(floor, top + log_min_p)
    total = _mass_from(row, floor, cut, first_tie, top, temperature, vocabulary, block, one)
    # The upper half of a product of 128 bits: the number is a fraction.
    target = tl.umulhi(number, total.to(tl.uint64)).to(tl.int64)
    before = tl.zeros((), tl.int64)
    chosen = likeliest
    for start in range(0, vocabulary, block):
        mass = _kept_mass(
            row, start + column, floor, cut, first_tie, top, temperature, vocabulary, one
        )  # fmt: skip
        here = tl.sum(mass, axis=0)
        if (before <= target) & (target < before + here):
            reached = before + tl.cumsum(mass, axis=0) > target
            chosen = tl.min(tl.where(reached, start + column, vocabulary), axis=0)
        before += here
    return chosen


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(row, token, temperature, vocabulary: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits divided by the temperature, rounded as torch does."""
    x = tl.load(row + token, mask=token < vocabulary, other=float("-inf")).to(tl.float32)
    return tl.div_rn(x, tl.zeros_like(x) + temperature)


@triton.jit  # type: ignore[untyped-decorator]
def _kept_mass(  # type: ignore[no-untyped-def]
    row, token, floor, cut, first_tie, top, temperature, vocabulary: tl.constexpr, one: tl.constexpr
):
    """Probabilities, not normalized; those of dropped tokens are 0."""
    x = _scaled(row, token, temperature, vocabulary)
    kept = (x >= floor) & ((x > cut) | ((x == cut) & (token >= first_tie)))
    return tl.where(kept, tl.exp(x - top) * one, 0.0).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def _mass_from(  # type: ignore[no-untyped-def]
    row, floor, cut, first_tie, top, temperature,
    vocabulary: tl.constexpr, block: tl.constexpr, one: tl.constexpr,
):  # fmt: skip
    """The sum of :func:`_kept_mass`."""
    column = tl.arange(0, block)
    sums = tl.zeros((block,), tl.int64)
    for start in range(0, vocabulary, block):
        sums += _kept_mass(
            row, start + column, floor, cut, first_tie, top, temperature, vocabulary, one
        )  # fmt: skip
    return tl.sum(sums, axis=0)


@triton.jit  # type: ignore[untyped-decorator]
def _reach(  # type: ignore[no-untyped-def]
    row, bound, top, temperature, floor,
    vocabulary: tl.constexpr, block: tl.constexpr, passes: tl.constexpr, one: tl.constexpr,
    weighs: tl.constexpr,
):  # fmt: skip
    """The largest logit such that those from it on weigh as much as ``bound``, or more.

    Each weighs 1, or its probability and nothing below ``floor``. It may be NaN, if all or none do.
    """
    column = tl.arange(0, block)
    key = tl.zeros((), tl.int64)
    for number in range(passes):
        unit = tl.full((), 1, tl.int64) << (30 - 2 * number)
        lowest, middle, highest = _value(key + unit), _value(key + 2 * unit), _value(key + 3 * unit)
        weight: tl.constexpr = tl.int64 if weighs else tl.int32
        from_lowest = tl.zeros((block,), weight)
        from_middle = tl.zeros((block,), weight)
        from_highest = tl.zeros((block,), weight)
        for start in range(0, vocabulary, block):
            token = start + column
            inside = token < vocabulary
            x = tl.load(row + token, mask=inside, other=float("-inf")).to(tl.float32)
            if weighs:
                scaled = tl.div_rn(x, tl.zeros_like(x) + temperature)
                mass = tl.exp(scaled - top) * one
                each = tl.where(inside & (scaled >= floor), mass, 0.0).to(weight)
            else:
                each = inside.to(weight)
            from_lowest += tl.where(x >= lowest, each, 0)
            from_middle += tl.where(x >= middle, each, 0)
            from_highest += tl.where(x >= highest, each, 0)
        three = tl.sum(from_highest, axis=0) >= bound
        two = tl.sum(from_middle, axis=0) >= bound
        first = tl.sum(from_lowest, axis=0) >= bound
        key += unit * tl.where(three, 3, tl.where(two, 2, tl.where(first, 1, 0)))
    # Of a dtype with fewer bits, the others are 0, which are ones in a negative number's key.
    spare: tl.constexpr = (1 << (32 - 2 * passes)) - 1
    return _value(tl.where(key < 0x80000000, key | spare, key))


@triton.jit
def _value(key):  # type: ignore[no-untyped-def]
    """The fp32 number of a key of 32 bits; keys are in the numbers' order, NaNs at both ends."""
    bits = tl.where(key < 0x80000000, 0xFFFFFFFF - key, key - 0x80000000)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def _random_bits(seed, position):  # type: ignore[no-untyped-def]
    """:func:`gptj_predictor.sampling.draws.uniform` as a fraction of 2 ** 64."""
    state = _mix(seed.to(tl.uint64)) + (position + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    return (_mix(state) >> 11) << 11


@triton.jit
def _mix(state):  # type: ignore[no-untyped-def]
    """SplitMix64: Steele, Lea and Flood (2014), figure 16."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    return state ^ (state >> 31)
