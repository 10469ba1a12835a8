"""The paged KV cache: where keys and values lie."""

from __future__ import annotations

from typing import NamedTuple

import torch

#: Never handed out: page tables are padded with it, and padding writes to it.
NULL_PAGE = 0

#: Tokens of one sequence that lie side by side in the cache: index of the first one, and how many.
Extent = tuple[int, int]


class LayerCache(NamedTuple):
    """One layer's keys (rotated) and values: ``[pages, page_size, heads, head_size]`` each."""

    keys: torch.Tensor
    values: torch.Tensor


class PagedKVCache:
    """Keys and values of all layers in pages of ``page_size`` tokens, each layer on its device.

    A page has the same number in every layer. Token ``offset`` of page ``page`` has index
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
