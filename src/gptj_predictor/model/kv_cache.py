"""The paged KV cache: where keys and values lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: Never handed out: page tables are padded with it, and padding writes to it.
NULL_PAGE = 0

#: Tokens of one sequence that lie side by side in the cache: index of the first one, and how many.
Extent = tuple[int, int]


class LayerCache:
    """One layer's keys (rotated) and values, which it is made of when it is iterated.

    Attributes:
        both: ``[2, pages, page_size, heads, head_size]``.
        keys: The first half, a view.
        values: The second half, a view.
    """

    def __init__(self, both: torch.Tensor) -> None:
        self.both = both
        self.keys, self.values = both.unbind(0)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.keys, self.values))


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
        self._layers = [
            LayerCache(torch.empty(shape, dtype=dtype, device=device)) for device in devices
        ]

    def layer(self, index: int) -> LayerCache:
        """A layer's part."""
        return self._layers[index]
