"""The tokens of a step, packed so that one upload brings them to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptj_predictor.common.upload import upload
from gptj_predictor.engine.sequence import ScheduledChunk


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

    def upload(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(upload(self.packed, device), upload(self.page_tables, device))
