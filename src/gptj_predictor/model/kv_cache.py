"""The paged KV cache: where keys and values lie, and which of them a step reads and writes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

#: Never handed out: block tables are padded with it, and padding rows write to it.
NULL_PAGE = 0

#: Neighbouring cache slots of one sequence: the first slot and how many follow each other.
Extent = tuple[int, int]


class LayerCache(NamedTuple):
    """One layer's keys (rotated) and values: ``[pages, page_size, heads, head_size]`` each."""

    keys: torch.Tensor
    values: torch.Tensor


class PagedKVCache:
    """Keys and values of all layers in pages of ``page_size`` tokens, each layer on its device.

    A page has the same number in every layer. Token ``offset`` of page ``page`` lies at slot
    ``page * page_size + offset``, so pages with consecutive numbers are one stretch of memory.
    """

    def __init__(
        self,
        *,
        devices: list[torch.device],
        pages: int,
        page_size: int,
        heads: int,
        head_size: int,
        dtype: torch.dtype,
    ) -> None:
        """Allocate the pages, unfilled, for one layer on each of ``devices``."""
        self.page_size = page_size
        shape = (2, pages, page_size, heads, head_size)
        self._layers = [torch.empty(shape, dtype=dtype, device=device) for device in devices]

    def layer(self, index: int) -> LayerCache:
        """A layer's part, as views."""
        return LayerCache(*self._layers[index].unbind(0))


@dataclass(frozen=True)
class PrefillChunk:
    """Neighbouring tokens of one prompt that a step takes in.

    Attributes:
        tokens: How many.
        context: The slots of the sequence's tokens before them.
    """

    tokens: int
    context: list[Extent]


@dataclass(frozen=True)
class StepInputs:
    """One step's T tokens, laid end to end without padding.

    The first D tokens belong to D sequences that decode; the rest are the prefill chunks in order.

    Attributes:
        token_ids: ``[T]`` int64.
        positions: ``[T]`` int64, each token's place in its sequence, from 0.
        cache_slots: ``[T]`` int64, where to write its key and value.
        block_tables: ``[D, P]`` int32 page numbers, padded with ``NULL_PAGE``.
        lengths: ``[D]`` int32, tokens that a decoding sequence attends to, its new one included.
        contexts: The same D contexts as slots; may be empty for attention that reads the tables.
        chunks: The prefill chunks.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    cache_slots: torch.Tensor
    block_tables: torch.Tensor
    lengths: torch.Tensor
    contexts: list[list[Extent]]
    chunks: list[PrefillChunk]

    @property
    def decodes(self) -> int:
        """How many sequences decode."""
        return self.lengths.shape[0]

    def to(self, device: torch.device) -> StepInputs:
        """The same step with its tensors on another device."""
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            positions=self.positions.to(device),
            cache_slots=self.cache_slots.to(device),
            block_tables=self.block_tables.to(device),
            lengths=self.lengths.to(device),
        )
