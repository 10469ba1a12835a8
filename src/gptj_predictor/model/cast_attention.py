"""Decoding on CPUs that attend faster in fp32 than in the KV cache's own dtype."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gptj_predictor.model.kv_cache import Extent, LayerCache
from gptj_predictor.model.step_inputs import StepInputs

#: Bytes of the contexts that are copied before they are attended to, so that the copies are still
#: in a processor's cache. Of 1.6 to 25 MB, 3 to 6 were best (two cores with 1 MB of L2 cache each,
#: 8 to 64 contexts of 48 tokens); contexts of 300 tokens, 5 MB, are best one by one.
_GROUP_BYTES = 2**22


@dataclass(frozen=True)
class _Group:
    """Neighboring decode rows that are attended to in one call.

    Attributes:
        rows: Which ones.
        extents: Where their contexts lie in the cache, one behind the other.
        copies: Where each extent is copied to, ``[2, count, heads, head_size]`` fp32.
        padding: What lies behind a context's end, likewise.
        keys: All of the copies, ``[rows, heads, tokens, head_size]``.
        values: Likewise.
        mask: ``[rows, 1, 1, tokens]`` fp32, minus infinity behind a context's end; ``None`` if all
            are of the same length.
    """

    rows: slice
    extents: list[Extent]
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
            step: Its ``contexts`` say what belongs to which of the D sequences.
            out: ``[D, heads, head_size]`` to write to; it may be what the cache's newest values
                were copied from.
        """
        slots = cache.both.flatten(1, 2)
        if step is not self._step:
            self._step, self._groups = step, self._make_groups(step.contexts, *slots.shape[2:])
        cast = queries.float()[:, :, None]
        for group in self._groups:
            # One operation, so that only one is looked up.
            torch._foreach_copy_(group.copies, [slots[:, at : at + n] for at, n in group.extents])
            if group.padding:
                torch._foreach_zero_(group.padding)  # what lay here may not be finite
            attended, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
                cast[group.rows], group.keys, group.values, attn_mask=group.mask
            )
            out[group.rows] = attended[:, :, 0]

    def _make_groups(
        self, contexts: list[list[Extent]], heads: int, head_size: int
    ) -> list[_Group]:
        """Cut a batch into groups of at most ``_GROUP_BYTES``, padding included, or one context."""
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
    """Runs of rows that are at most ``limit`` tokens with their padding, or one row."""
    begin = longest = 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > begin and longest * (row + 1 - begin) > limit:
            yield slice(begin, row)
            begin, longest = row, length
    if lengths:
        yield slice(begin, len(lengths))


def _make_group(
    rows: slice,
    contexts: list[list[Extent]],
    lengths: list[int],
    heads: tuple[int, int],
    memory: torch.Tensor,
) -> _Group:
    tokens = max(lengths)
    shape = (2, len(contexts), tokens, *heads)
    copy = memory[: math.prod(shape)].view(shape)
    copies, padding = [], []
    for place, extents, length in zip(copy.unbind(1), contexts, lengths, strict=True):
        copies += place[:, :length].split([count for _, count in extents], 1)
        if length < tokens:
            padding.append(place[:, length:])
    mask = None
    if padding:
        beyond = torch.arange(tokens) >= torch.tensor(lengths)[:, None, None, None]
        mask = torch.zeros(beyond.shape).masked_fill_(beyond, float("-inf"))
    extents = [extent for context in contexts for extent in context]
    keys, values = copy.transpose(2, 3)
    return _Group(rows, extents, copies, padding, keys, values, mask)
