"""The paged KV cache: where keys and values lie."""

from __future__ import annotations

from collections.abc import Iterator

import torch

#: Never handed out: page tables are padded with it, and padding writes to it.
NULL_PAGE = 0

#: Tokens of one sequence that lie side by side in the cache: index of the first one, and how many.
Extent = tuple[int, int]


#: torch's widest dtype.
_WIDEST = torch.complex128


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
        self._places = both.flatten(1, 2)
        self._wide_places = self._places.view(_WIDEST) if _can_widen(self._places) else None

    def write(self, slots: torch.Tensor, keys_and_values: torch.Tensor) -> None:
        """Write new tokens.

        Args:
            slots: ``[T]`` int64, indices of the tokens' places.
            keys_and_values: ``[T, 2, heads, head_size]``, of the cache's dtype.
        """
        places, tokens = self._places, keys_and_values.transpose(0, 1)
        if self._wide_places is not None and _can_widen(tokens):
            # torch copies value by value: the wider these are, the fewer there are.
            places, tokens = self._wide_places, tokens.view(_WIDEST)
        places.index_copy_(1, slots, tokens)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.keys, self.values))


def _can_widen(values: torch.Tensor) -> bool:
    steps = (values.shape[-1], values.storage_offset(), *values.stride()[:-1])
    return not any(step * values.element_size() % _WIDEST.itemsize for step in steps)


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
