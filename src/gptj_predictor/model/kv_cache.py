"""The paged KV cache: where keys and values lie, and which of them a step reads and writes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Never handed out: rows of a block table are padded with it, and it always holds zeros.
NULL_PAGE = 0


class PagedKVCache:
    """Keys and values of all layers in pages of ``page_size`` tokens.

    Attributes:
        data: ``[layers, 2, pages, page_size, heads, head_size]``; index 0 of the second axis are
            the keys (already rotated), 1 the values.
    """

    def __init__(
        self,
        *,
        layers: int,
        pages: int,
        page_size: int,
        heads: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_size = page_size
        # Not zeroed as a whole: on a CPU, memory that was never written costs nothing.
        self.data = torch.empty(
            (layers, 2, pages, page_size, heads, head_size), dtype=dtype, device=device
        )
        self.clear([NULL_PAGE])

    @staticmethod
    def bytes_per_page(
        *, layers: int, page_size: int, heads: int, head_size: int, dtype: torch.dtype
    ) -> int:
        """Bytes that one page takes over all layers."""
        return layers * 2 * page_size * heads * head_size * dtype.itemsize

    def clear(self, pages: list[int]) -> None:
        """Zero pages before their first use.

        Attention reads whole pages and masks the tail with weights of zero; zero times a stale
        infinity would still be NaN.
        """
        if pages:
            self.data[:, :, pages] = 0

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each ``[pages, page_size, heads, head_size]``."""
        return self.data[index, 0], self.data[index, 1]


@dataclass(frozen=True)
class StepInputs:
    """One step's tokens of all its sequences, laid end to end without padding.

    T tokens of S sequences. Sequences that bring one token come first.

    Attributes:
        token_ids: ``[T]`` int64.
        positions: ``[T]`` int64, each token's place in its sequence, from 0.
        cache_slots: ``[T]`` int64, ``page * page_size + offset`` to write its key and value to.
        query_lengths: S tokens counts that sum to T.
        context_lengths: S counts of tokens to attend to, this step's included.
        block_tables: ``[S, P]`` int64 page numbers in order, padded with ``NULL_PAGE``.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    cache_slots: torch.Tensor
    query_lengths: list[int]
    context_lengths: list[int]
    block_tables: torch.Tensor

    @property
    def single_token_sequences(self) -> int:
        """How many sequences, from the first on, bring exactly one token."""
        return sum(1 for length in self.query_lengths if length == 1)
