"""Hands out the pages of the KV cache.

Pages of one sequence are neighbors where possible, because attention reads neighboring pages as one
stretch of memory. So a sequence starts where there is room for its maximum length. That room is
reserved: other sequences use it only when no other page is free.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from gptj_predictor.model.kv_cache import NULL_PAGE, Extent

_FREE, _RESERVED, _TAKEN = b"frt"


class PageTable:
    """One sequence's pages in order."""

    def __init__(self, page_size: int, max_pages: int) -> None:
        self.page_size = page_size
        self.pages: list[int] = []
        #: ``[max_pages]`` int32, the same, padded with ``NULL_PAGE``.
        self.array: NDArray[np.int32] = np.full(max_pages, NULL_PAGE, dtype=np.int32)
        self._runs: list[list[int]] = []  # neighboring pages: number of the first, how many

    def append(self, page: int) -> None:
        """Add a page at the end."""
        self.array[len(self.pages)] = page
        self.pages.append(page)
        if self._runs and sum(self._runs[-1]) == page:
            self._runs[-1][1] += 1
        else:
            self._runs.append([page, 1])

    def extents(self, num_tokens: int) -> list[Extent]:
        """Where the first ``num_tokens`` tokens lie, in as few extents as possible."""
        extents = []
        for first, count in self._runs:
            if num_tokens <= 0:
                break
            size = count * self.page_size
            extents.append((first * self.page_size, min(num_tokens, size)))
            num_tokens -= size
        return extents


class PageAllocator:
    """All pages of a KV cache; ``NULL_PAGE`` is never handed out.

    A page may be in several tables. One that the prefix cache retains is not free when its last
    table lets it go: it is idle, and evicted when its space is needed, the longest idle page first.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.num_pages = num_pages
        #: Called with a retained page that is evicted.
        self.on_evict: Callable[[int], None] = lambda _: None
        self._states = bytearray([_FREE]) * (num_pages + 1)
        self._states[NULL_PAGE] = _TAKEN
        self._holders = [0] * (num_pages + 1)
        self._num_blank = num_pages  # free or reserved
        self._retained: set[int] = set()
        self._idle: OrderedDict[int, None] = OrderedDict()  # retained, in no table
        self._reserved: dict[PageTable, range] = {}  # the pages after a table's last one

    @property
    def num_free(self) -> int:
        """Pages that can be handed out now, idle ones included."""
        return self._num_blank + len(self._idle)

    @property
    def num_used(self) -> int:
        """Pages that are in tables."""
        return self.num_pages - self.num_free

    @property
    def max_tokens(self) -> int:
        """Tokens that all pages together can hold."""
        return self.num_pages * self.page_size

    def pages_for(self, num_tokens: int) -> int:
        """Pages that ``num_tokens`` tokens take."""
        return -(-num_tokens // self.page_size)

    def extend(self, table: PageTable, num_tokens: int, max_tokens: int) -> bool:
        """Append pages until the table holds ``num_tokens``; it may come to hold ``max_tokens``.

        Returns:
            Whether there were enough pages; if not, nothing was handed out.
        """
        wanted = self.pages_for(num_tokens) - len(table.pages)
        if wanted > self.num_free:
            return False
        for _ in range(wanted):
            page = self._next_page(table, self.pages_for(max_tokens) - len(table.pages))
            self._states[page] = _TAKEN
            self._num_blank -= 1
            self._holders[page] = 1
            table.append(page)
        return True

    def share(self, table: PageTable, page: int) -> None:
        """Append a page that is in other tables or idle."""
        self._idle.pop(page, None)
        self._holders[page] += 1
        table.append(page)

    def release(self, table: PageTable) -> None:
        """Take back all pages of a table, the last one first, so that it is evicted first.

        Raises:
            ValueError: a page of it is not handed out.
        """
        for page in reversed(table.pages):
            if self._holders[page] < 1:
                raise ValueError(f"page {page} is not handed out")
            self._holders[page] -= 1
            if not self._holders[page]:
                if page in self._retained:
                    self._idle[page] = None
                else:
                    self._blank(page)
        self._unreserve(table)
        table.pages = []

    def retain(self, page: int) -> None:
        """Do not free a page when its last table lets it go."""
        self._retained.add(page)

    def drop_retained(self) -> None:
        """Retain no page any more; idle ones are free."""
        for page in self._idle:
            self._blank(page)
        self._idle.clear()
        self._retained.clear()

    def check_invariants(self, tables: Iterable[PageTable]) -> None:
        """Assert that the books agree with themselves and with all tables in use."""
        holders = Counter(page for table in tables for page in table.pages)
        assert NULL_PAGE not in holders
        assert self._holders == [holders[page] for page in range(self.num_pages + 1)]
        assert set(self._idle) == {page for page in self._retained if not self._holders[page]}
        for page in range(1, self.num_pages + 1):
            taken = self._holders[page] > 0 or page in self._idle
            assert taken == (self._states[page] == _TAKEN)
        assert self._num_blank == sum(state != _TAKEN for state in self._states)

    def _next_page(self, table: PageTable, wish: int) -> int:
        reserved = self._reserved.get(table, range(0))
        if reserved and self._states[reserved.start] == _RESERVED:
            self._reserved[table] = reserved[1:]
            return reserved.start
        self._unreserve(table)
        run = self._find_run(wish)
        if run:
            self._states[run.start : run.stop] = bytes([_RESERVED]) * len(run)
            self._reserved[table] = run[1:]
            return run.start
        return self._states.index(_RESERVED)  # only pages reserved for others are left

    def _find_run(self, wish: int) -> range:
        """The longest run of free pages up to ``wish``; evicts at most as many pages to make it."""
        evictable = wish
        while wish:
            start = self._states.find(bytes([_FREE]) * wish)
            if start >= 0:
                return range(start, start + wish)
            if evictable and self._idle:
                evictable -= 1
                self._evict_oldest()
            else:
                wish //= 2
        return range(0)

    def _evict_oldest(self) -> None:
        page, _ = self._idle.popitem(last=False)
        self._retained.discard(page)
        self._blank(page)
        self.on_evict(page)

    def _blank(self, page: int) -> None:
        self._states[page] = _FREE
        self._num_blank += 1

    def _unreserve(self, table: PageTable) -> None:
        for page in self._reserved.pop(table, ()):
            if self._states[page] == _RESERVED:
                self._states[page] = _FREE
