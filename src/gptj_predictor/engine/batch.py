"""The tokens of a step, packed so that one upload brings them to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptj_predictor.common.upload import pinned, upload
from gptj_predictor.engine.sequence import ScheduledChunk
from gptj_predictor.model.kv_cache import NULL_PAGE


@dataclass(frozen=True)
class Batch:
    """T tokens of a step, of which the first D belong to D sequences that decode.

    Attributes:
        packed: ``[4, T]`` int64, the four properties below in their order.
        page_tables: ``[D, P]`` int32, the decoding sequences' pages, padded with ``NULL_PAGE``.
    """

    packed: torch.Tensor
    page_tables: torch.Tensor

    @classmethod
    def build(cls, chunks: Sequence[ScheduledChunk], page_size: int, max_pages: int) -> Batch:
        """On the host, from scheduled chunks, those of one token first."""
        decoding = [chunk for chunk in chunks if chunk.num_tokens == 1]
        starts = np.array([chunk.start for chunk in decoding], dtype=np.int64)
        pages = [chunk.page_table.pages[chunk.start // page_size] for chunk in decoding]
        slots = np.array(pages, dtype=np.int64) * page_size + starts % page_size
        indices = np.array([chunk.batch_index for chunk in decoding], dtype=np.int64)
        parts = [np.stack([indices, starts, slots, starts + 1])]
        for chunk in chunks[len(decoding) :]:
            positions = np.arange(chunk.start, chunk.end)
            pages_of = chunk.page_table.array[positions // page_size]
            indices = np.full(chunk.num_tokens, chunk.batch_index)
            slots = pages_of * page_size + positions % page_size
            parts.append(np.stack([indices, positions, slots, positions + 1]))
        tables = np.empty((0, max_pages), dtype=np.int32)
        if decoding:
            tables = np.stack([chunk.page_table.array for chunk in decoding])
        return cls(torch.from_numpy(np.concatenate(parts, axis=1)), torch.from_numpy(tables))

    @classmethod
    def padding(cls, size: int, max_pages: int, batch_index: int, device: torch.device) -> Batch:
        """Decoding sequences that belong to nobody: they write to the null page and read it."""
        token = torch.tensor([batch_index, 0, NULL_PAGE, 1])[:, None]
        return cls(
            token.expand(4, size).contiguous().to(device),
            torch.full((size, max_pages), NULL_PAGE, dtype=torch.int32, device=device),
        )

    @property
    def batch_indices(self) -> torch.Tensor:
        """``[T]``: each token's sequence's place in the running batch."""
        return self.packed[0]

    @property
    def positions(self) -> torch.Tensor:
        """``[T]``: each token's place in its sequence, from 0."""
        return self.packed[1]

    @property
    def slot_mapping(self) -> torch.Tensor:
        """``[T]``: where in the KV cache each token is written."""
        return self.packed[2]

    @property
    def context_lengths(self) -> torch.Tensor:
        """``[T]``: how many tokens each token attends to, itself included."""
        return self.packed[3]

    def pin(self, device: torch.device) -> Batch:
        """The same on the host, in memory that ``device`` can fetch from by itself."""
        return Batch(pinned(self.packed, device), pinned(self.page_tables, device))

    def upload(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(upload(self.packed, device), upload(self.page_tables, device))

    def fill(self, batch: Batch, padding: Batch) -> None:
        """Overwrite this one with D decoding sequences, and with padding behind them."""
        size, total = batch.packed.shape[1], self.packed.shape[1]
        self.packed[:, :size].copy_(batch.packed, non_blocking=True)
        self.packed[:, size:].copy_(padding.packed[:, size:total])
        self.page_tables[:size].copy_(batch.page_tables, non_blocking=True)
        self.page_tables[size:].fill_(NULL_PAGE)
