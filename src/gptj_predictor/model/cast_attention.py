"""Decoding on CPUs that attend faster in fp32 than in the KV cache's own dtype.

Contexts are copied to fp32 and attended to there. torch gives the first half of an operation to the
first of two threads. So a copy brings two contexts at once, which are half a group apart: each
thread then attends to what it copied. What the other one has just written it would read two to
three times as slowly, where the two CPUs share no cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gptj_predictor.model.kv_cache import Extent, LayerCache
from gptj_predictor.model.step_inputs import StepInputs

#: Bytes of the contexts that are copied before they are attended to, so that the copies are still
#: in a processor's cache. Of 1.6 to 25 MB, 3 to 6 were best (two cores with 1 MB of L2 cache each,
#: 8 to 64 contexts of 48 tokens).
_GROUP_BYTES = 2**22


class _Stretch(NamedTuple):
    """Tokens of the cache that are copied in one go, of one context or of two.

    Attributes:
        at: Index of the first one.
        tokens: How many, of each context.
        to_second: How much further the second context's begin; ``None`` if there is no second.
    """

    at: int
    tokens: int
    to_second: int | None = None

    def of(self, cache: LayerCache) -> torch.Tensor:
        """``[contexts, 2, tokens, heads, head_size]``, or without the first for one context."""
        both = cache.both
        half, _, token, head, value = both.stride()
        size, stride = [2, self.tokens, *both.shape[3:]], [half, token, head, value]
        if self.to_second is not None:
            size, stride = [2, *size], [self.to_second * token, *stride]
        return both.as_strided(size, stride, both.storage_offset() + self.at * token)


@dataclass(frozen=True)
class _Group:
    """Neighboring decode rows that are attended to in one call.

    Attributes:
        rows: Which ones.
        stretches: Where their contexts lie in the cache.
        copies: Where each is copied to, fp32, of the same shape.
        padding: What lies behind a context's end, ``[2, tokens, heads, head_size]`` each.
        keys: All of the copies, ``[rows, heads, tokens, head_size]``.
        values: Likewise.
        mask: ``[rows, 1, 1, tokens]`` fp32, minus infinity behind a context's end; ``None`` if all
            are of the same length.
    """

    rows: slice
    stretches: list[_Stretch]
    copies: list[torch.Tensor]
    padding: list[torch.Tensor]
    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor | None


class CastDecode:
    """Copies contexts to fp32, a few at a time, and attends to them there."""

    def __init__(self) -> None:
        self._step: StepInputs | None = None
        self._groups: list[_Group] = []  # of that step; all layers share them
        self._memory = torch.empty(0)  # used again: new memory would cost page faults

    def __call__(
        self, queries: torch.Tensor, cache: LayerCache, step: StepInputs, out: torch.Tensor
    ) -> None:
        """Attend for the sequences that decode, each to its own context.

        Args:
            queries: ``[D, heads, head_size]``.
            cache: One layer's.
            step: Its ``contexts`` say what belongs to which of the D sequences. Those that begin
                later in the cache should come later.
            out: ``[D, heads, head_size]`` to write to; it may be what the cache's newest values
                were copied from.
        """
        if step is not self._step:
            heads, head_size = cache.both.shape[3:]
            self._step, self._groups = step, self._make_groups(step.contexts, heads, head_size)
        cast = queries.float()[:, :, None]
        for group in self._groups:
            # One operation, so that only one is looked up.
            torch._foreach_copy_(group.copies, [part.of(cache) for part in group.stretches])
            if group.padding:
                torch._foreach_zero_(group.padding)  # what lay here may not be finite
            attended, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
                cast[group.rows], group.keys, group.values, attn_mask=group.mask
            )
            out[group.rows] = attended[:, :, 0]

    def _make_groups(
        self, contexts: list[list[Extent]], heads: int, head_size: int
    ) -> list[_Group]:
        """Groups of at most ``_GROUP_BYTES``, padding included, or of two contexts."""
        token_values = 2 * heads * head_size
        lengths = [sum(count for _, count in extents) for extents in contexts]
        cuts = list(_cut(lengths, max(1, _GROUP_BYTES // (token_values * torch.float32.itemsize))))
        size = token_values * max((len(lengths[r]) * max(lengths[r]) for r in cuts), default=0)
        if self._memory.numel() < size:
            self._memory = torch.empty(2 * size)  # with room to grow
        return [
            _make_group(rows, contexts[rows], lengths[rows], (heads, head_size), self._memory)
            for rows in cuts
        ]


def _cut(lengths: list[int], limit: int) -> Iterator[slice]:
    """Runs of pairs of rows that are at most ``limit`` tokens with their padding, or one pair."""
    begin = longest = 0
    for row in range(0, len(lengths), 2):
        pair = max(lengths[row : row + 2])
        longest = max(longest, pair)
        if row > begin and longest * (row + 2 - begin) > limit:
            yield slice(begin, row)
            begin, longest = row, pair
    if lengths:
        yield slice(begin, len(lengths))


def _make_group(
    rows: slice,
    contexts: list[list[Extent]],
    lengths: list[int],
    heads: tuple[int, int],
    memory: torch.Tensor,
) -> _Group:
    count, tokens = len(contexts), max(lengths)
    shape = (count, 2, tokens, *heads)
    copy = memory[: math.prod(shape)].view(shape)
    stretches, copies = [], []
    apart = -(-count // 2)
    for row in range(apart):
        # Of an odd count the middle one is alone: both threads attend to it.
        second = contexts[row + apart] if row + apart < count else []
        for start, stretch, which in _pair(contexts[row], second):
            stretches.append(stretch)
            copies.append(copy[row::apart][which, :, start : start + stretch.tokens])
    padding = [
        place[:, length:] for place, length in zip(copy, lengths, strict=True) if length < tokens
    ]
    mask = None
    if padding:
        beyond = torch.arange(tokens) >= torch.tensor(lengths)[:, None, None, None]
        mask = torch.zeros(beyond.shape).masked_fill_(beyond, float("-inf"))
    keys, values = copy.transpose(2, 3).unbind(1)
    return _Group(rows, stretches, copies, padding, keys, values, mask)


def _pair(first: list[Extent], second: list[Extent]) -> Iterator[tuple[int, _Stretch, int | slice]]:
    """Cut two contexts alike: where a stretch begins in them, and which of them it is of."""
    start = 0
    while first or second:
        tokens = min(count for _, count in first[:1] + second[:1])
        places = [extents[0][0] for extents in (first, second) if extents]
        if len(places) == 2 and places[0] <= places[1]:
            yield start, _Stretch(places[0], tokens, places[1] - places[0]), slice(2)
        else:  # strides cannot be negative
            numbers = [number for number, extents in enumerate((first, second)) if extents]
            for number, place in zip(numbers, places, strict=True):
                yield start, _Stretch(place, tokens), number
        first, second = _skip(first, tokens), _skip(second, tokens)
        start += tokens


def _skip(extents: list[Extent], tokens: int) -> list[Extent]:
    """What comes after the first tokens, which are all of the first extent's."""
    if not extents:
        return []
    (at, count), *others = extents
    return [(at + tokens, count - tokens), *others] if count > tokens else others
