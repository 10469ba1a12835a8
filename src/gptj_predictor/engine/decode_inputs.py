"""The inputs of a step in which every sequence decodes, packed so that one upload brings them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptj_predictor.common.upload import pinned
from gptj_predictor.engine.sequence import ScheduledChunk
from gptj_predictor.model.kv_cache import NULL_PAGE
from gptj_predictor.sampling.rows import MAX_ENDS, RowFields, RowTable

#: Fields begin at multiples of this: a kernel is compiled anew for a pointer that is less aligned.
_ALIGNMENT = 16


@dataclass(frozen=True)
class DecodeInputs:
    """Views of one buffer: D sequences, each with one token to take in and one to choose.

    Attributes:
        buffer: All bytes, uint8.
        batch_indices: ``[D]`` int64, each sequence's place in the running batch.
        positions: ``[D]`` int64, of the token that is taken in.
        slot_mapping: ``[D]`` int64, where in the KV cache it is written.
        lengths: ``[D]`` int64, tokens so far, itself included: what it attends to, and the position
            of the next.
        seeds: ``[D]`` int64; this and the next five are :class:`RowFields`'.
        temperatures: ``[D]`` fp32.
        top_ps: ``[D]`` fp32.
        log_min_ps: ``[D]`` fp32.
        top_ks: ``[D]`` int32.
        ends: ``[D, MAX_ENDS]`` int32.
        page_tables: ``[D, P]`` int32, the sequences' pages, padded with ``NULL_PAGE``.
    """

    buffer: torch.Tensor
    batch_indices: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    lengths: torch.Tensor
    seeds: torch.Tensor
    temperatures: torch.Tensor
    top_ps: torch.Tensor
    log_min_ps: torch.Tensor
    top_ks: torch.Tensor
    ends: torch.Tensor
    page_tables: torch.Tensor

    @classmethod
    def num_bytes(cls, size: int, max_pages: int) -> int:
        """How large the buffer is for ``size`` sequences with tables of ``max_pages``."""
        return sum(
            -(-np.dtype(dtype).itemsize * np.prod(shape, dtype=int) // _ALIGNMENT) * _ALIGNMENT
            for dtype, shape in _fields(size, max_pages).values()
        )

    @classmethod
    def of(cls, buffer: torch.Tensor, size: int, max_pages: int) -> DecodeInputs:
        """Views of the first :meth:`num_bytes` of a buffer, on any device."""
        views: dict[str, torch.Tensor] = {}
        start = 0
        for name, (dtype, shape) in _fields(size, max_pages).items():
            end = start + np.dtype(dtype).itemsize * int(np.prod(shape, dtype=int))
            kind = getattr(torch, np.dtype(dtype).name)
            views[name] = buffer[start:end].view(kind).view(shape)
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
        return cls(buffer[:start], **views)

    @classmethod
    def empty(cls, size: int, max_pages: int) -> DecodeInputs:
        """On the host, to be filled."""
        buffer = torch.empty(cls.num_bytes(size, max_pages), dtype=torch.uint8)
        return cls.of(buffer, size, max_pages)

    @classmethod
    def padding(cls, size: int, max_pages: int, batch_index: int) -> DecodeInputs:
        """On the host, sequences that belong to nobody: they take the null page and no work."""
        inputs = cls.empty(size, max_pages)
        inputs._pad(0, batch_index)
        return inputs

    @classmethod
    def build(
        cls,
        chunks: Sequence[ScheduledChunk],
        rows: RowTable,
        *,
        size: int,
        page_size: int,
        max_pages: int,
        padding_index: int,
    ) -> DecodeInputs:
        """On the host, from chunks that sample, and behind them padding up to ``size``.

        Args:
            chunks: In a step that also takes in prompts, only sampling is described: then
                ``max_pages`` is 0.
            rows: The batch's parameters.
            size: As many as chunks, or more.
            page_size: Tokens per page.
            max_pages: Width of the page tables.
            padding_index: The batch index that padding reads its tokens from.
        """
        inputs = cls.empty(size, max_pages)
        count = len(chunks)
        indices = np.array([chunk.batch_index for chunk in chunks], dtype=np.int64)
        lengths = np.array([chunk.end for chunk in chunks], dtype=np.int64)
        inputs._pad(count, padding_index)
        inputs.batch_indices.numpy()[:count] = indices
        inputs.lengths.numpy()[:count] = lengths
        rows.read(indices, lengths, inputs._rows)
        if max_pages:
            starts = lengths - 1
            pages = np.array(
                [chunk.page_table.pages[chunk.start // page_size] for chunk in chunks], np.int64
            )
            inputs.positions.numpy()[:count] = starts
            inputs.slot_mapping.numpy()[:count] = pages * page_size + starts % page_size
            tables = inputs.page_tables.numpy()
            for row, chunk in enumerate(chunks):
                tables[row] = chunk.page_table.array
        return inputs

    @property
    def _rows(self) -> RowFields:
        return RowFields(**{name: getattr(self, name).numpy() for name in _ROW_FIELDS})

    def _pad(self, start: int, batch_index: int) -> None:
        """Make padding of the sequences from ``start`` on."""
        self.batch_indices.numpy()[start:] = batch_index
        self.positions.numpy()[start:] = 0
        self.slot_mapping.numpy()[start:] = NULL_PAGE
        self.lengths.numpy()[start:] = 1
        self.page_tables.numpy()[start:] = NULL_PAGE
        self._rows.pad(start)

    def pin(self, device: torch.device) -> torch.Tensor:
        """The buffer on the host, in memory that ``device`` can fetch from by itself."""
        return pinned(self.buffer, device)

    def upload(self, device: torch.device) -> DecodeInputs:
        """The same on a device."""
        buffer = self.pin(device).to(device, non_blocking=True)
        return DecodeInputs.of(buffer, *self.page_tables.shape)


_ROW_FIELDS = ("seeds", "temperatures", "top_ps", "log_min_ps", "top_ks", "ends")


def _fields(size: int, max_pages: int) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    """Names, dtypes and shapes in the order in which they lie."""
    return {
        "batch_indices": (np.int64, (size,)),
        "positions": (np.int64, (size,)),
        "slot_mapping": (np.int64, (size,)),
        "lengths": (np.int64, (size,)),
        "seeds": (np.int64, (size,)),
        "temperatures": (np.float32, (size,)),
        "top_ps": (np.float32, (size,)),
        "log_min_ps": (np.float32, (size,)),
        "top_ks": (np.int32, (size,)),
        "ends": (np.int32, (size, MAX_ENDS)),
        "page_tables": (np.int32, (size, max_pages)),
    }
