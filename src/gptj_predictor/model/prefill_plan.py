"""How the prompt tokens of a step are laid out for kernels that take sequences of any lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gptj_predictor.model.kv_cache import Extent

#: Tokens whose keys and values one launch may have copied together: of GPT-J-6B in 16 bits 134 MB.
#: It bounds the memory of a step. More than that takes further launches.
MAX_GATHERED_TOKENS = 8192


@dataclass(frozen=True)
class PrefillChunk:
    """Neighboring tokens of one prompt that a step takes in.

    Attributes:
        tokens: How many.
        context: Where the sequence's tokens before them lie.
    """

    tokens: int
    context: list[Extent]

    @property
    def num_keys(self) -> int:
        """Tokens that its last one attends to."""
        return self.tokens + sum(count for _, count in self.context)


@dataclass(frozen=True)
class PrefillLaunch:
    """Chunks that one launch of a kernel attends for, C of them with T tokens and K keys.

    Attributes:
        num_tokens: T, which follow those of the launch before.
        cum_seq_q: ``[C + 1]`` int32, where each chunk's tokens begin, and T.
        cum_seq_k: ``[C + 1]`` int32, where each chunk's keys begin, and K.
        max_q: Tokens of the longest chunk.
        max_k: Keys of the chunk with the most.
        slots: ``[K]`` int64, where the keys lie in the cache. ``None`` if no chunk has a context;
            then the step's own keys are all there are.
    """

    num_tokens: int
    cum_seq_q: torch.Tensor
    cum_seq_k: torch.Tensor
    max_q: int
    max_k: int
    slots: torch.Tensor | None


def plan_prefills(
    chunks: Sequence[PrefillChunk],
    new_slots: torch.Tensor,
    max_gathered_tokens: int = MAX_GATHERED_TOKENS,
) -> list[PrefillLaunch]:
    """One launch for all chunks, unless more keys would be gathered than allowed.

    Args:
        chunks: Of a step, in order.
        new_slots: ``[T]`` int64 on the device that computes, where their tokens are written.
        max_gathered_tokens: Keys of one launch, if any chunk has a context. A chunk with more has
            a launch of its own.
    """
    if not chunks:
        return []
    if not any(chunk.context for chunk in chunks):
        [cumulated] = _upload([_cumulated([chunk.tokens for chunk in chunks])], new_slots.device)
        longest = max(chunk.tokens for chunk in chunks)
        return [PrefillLaunch(len(new_slots), cumulated, cumulated, longest, longest, None)]
    launches, first = [], 0
    for group in _groups(chunks, max_gathered_tokens):
        tokens = [chunk.tokens for chunk in group]
        end = first + sum(tokens)
        launches.append(_plan_gather(group, tokens, new_slots[first:end]))
        first = end
    return launches


def _groups(chunks: Sequence[PrefillChunk], most: int) -> Iterator[list[PrefillChunk]]:
    group: list[PrefillChunk] = []
    for chunk in chunks:
        if group and sum(one.num_keys for one in group) + chunk.num_keys > most:
            yield group
            group = []
        group.append(chunk)
    yield group


def _plan_gather(
    group: list[PrefillChunk], tokens: list[int], new_slots: torch.Tensor
) -> PrefillLaunch:
    keys = [chunk.num_keys for chunk in group]
    old_slots = _ranges([extent for chunk in group for extent in chunk.context])
    # Each chunk's context and then its own tokens, out of all contexts with all tokens behind.
    order, old, new = list[Extent](), 0, len(old_slots)
    for count, total in zip(tokens, keys, strict=True):
        order += [(old, total - count), (new, count)]
        old, new = old + total - count, new + count
    parts = [old_slots, _ranges(order), _cumulated(tokens), _cumulated(keys)]
    old_slots, places, cum_seq_q, cum_seq_k = _upload(parts, new_slots.device)
    slots = torch.cat([old_slots, new_slots])[places]
    return PrefillLaunch(len(new_slots), cum_seq_q, cum_seq_k, max(tokens), max(keys), slots)


def _ranges(extents: list[Extent]) -> torch.Tensor:
    """All indices of the extents, one after the other; int64."""
    if not extents:
        return torch.empty(0, dtype=torch.int64)
    firsts, counts = torch.tensor(extents).unbind(1)
    ends = counts.cumsum(0)
    return (firsts - ends + counts).repeat_interleave(counts) + torch.arange(int(ends[-1]))


def _cumulated(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def _upload(parts: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """The same on a device, with one copy for each dtype and without waiting for it."""
    uploaded: dict[torch.dtype, list[torch.Tensor]] = {}
    for dtype in dict.fromkeys(part.dtype for part in parts):
        same = [part for part in parts if part.dtype is dtype]
        packed = torch.cat(same)
        if device.type == "cuda":
            packed = packed.pin_memory()
        packed = packed.to(device, non_blocking=True)
        uploaded[dtype] = list(packed.split([len(part) for part in same]))
    return [uploaded[part.dtype].pop(0) for part in parts]
