"""Decoding on CPUs that attend faster in fp32 than in the KV cache's own dtype."""

from __future__ import annotations

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
        begin: The first one's index.
        contexts: Each one's, as extents.
        tokens: Of the longest context.
        mask: ``[rows, 1, 1, tokens]`` fp32, minus infinity behind a context's end; ``None`` if all
            are of the same length.
    """

    begin: int
    contexts: list[list[Extent]]
    tokens: int
    mask: torch.Tensor | None

    @property
    def end(self) -> int:
        """The index behind the last one."""
        return self.begin + len(self.contexts)


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
        token_values = cache.keys[0, 0].numel()
        if step is not self._step:
            limit = max(1, _GROUP_BYTES // (2 * token_values * torch.float32.itemsize))
            self._step, self._groups = step, list(_make_groups(step.contexts, limit))
        cast = queries.float()[:, :, None]
        slots = cache.both.flatten(1, 2)
        for group in self._groups:
            keys, values = self._copy(slots, group).transpose(2, 3)
            attended, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                cast[group.begin : group.end], keys, values, attn_mask=group.mask
            )
            out[group.begin : group.end] = attended[:, :, 0]

    def _copy(self, slots: torch.Tensor, group: _Group) -> torch.Tensor:
        """``[2, rows, tokens, heads, head_size]`` fp32, with zeros behind a context's end."""
        shape = (2, len(group.contexts), group.tokens, *slots.shape[2:])
        size = torch.Size(shape).numel()
        if self._memory.numel() < size:
            self._memory = torch.empty(2 * size)  # with room to grow
        copy = self._memory[:size].view(shape)
        for place, extents in zip(copy.unbind(1), group.contexts, strict=True):
            end = 0
            for at, count in extents:
                place[:, end : end + count] = slots[:, at : at + count]
                end += count
            if end < group.tokens:
                place[:, end:] = 0  # what lay here may not be finite
        return copy


def _make_groups(contexts: list[list[Extent]], limit: int) -> Iterator[_Group]:
    """Cut a batch into groups of at most ``limit`` tokens, padding included, or one context."""
    lengths = [sum(count for _, count in extents) for extents in contexts]
    begin = longest = 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > begin and longest * (row + 1 - begin) > limit:
            yield _make_group(begin, contexts[begin:row], lengths[begin:row])
            begin, longest = row, length
    if lengths:
        yield _make_group(begin, contexts[begin:], lengths[begin:])


def _make_group(begin: int, contexts: list[list[Extent]], lengths: list[int]) -> _Group:
    tokens = max(lengths)
    mask = None
    if min(lengths) < tokens:
        beyond = torch.arange(tokens) >= torch.tensor(lengths)[:, None, None, None]
        mask = torch.zeros(beyond.shape).masked_fill_(beyond, float("-inf"))
    return _Group(begin, contexts, tokens, mask)
