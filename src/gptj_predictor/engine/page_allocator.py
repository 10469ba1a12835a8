"""Hands out the pages of the KV cache.

Pages of one sequence are neighbors where possible, because attention reads neighboring pages as one
stretch of memory. So a sequence starts where there is room for its maximum length. That room is
reserved: other sequences use it only when no other page is free.

A page that the prefix cache retains is not free when its last table lets it go: it is idle, and
evicted when it is handed out again. Among all places that are wide enough for a sequence, it gets
the one that was left alone longest. So room is made where evicted pages lie side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from gptj_predictor.model.kv_cache import NULL_PAGE, Extent

#: When a page that is in a table was let go.
_NEVER = np.iinfo(np.int64).max


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

    A page may be in several tables. An idle page counts as free.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.num_pages = num_pages
        #: Called with a retained page that is evicted.
        self.on_evict: Callable[[int], None] = lambda _: None
        self._num_free = num_pages
        self._holders = [0] * (num_pages + 1)
        self._retained: set[int] = set()
        #: ``[num_pages + 1]``: when an idle page was let go, 0 if blank, ``_NEVER`` if in a table.
        self._idle_since = np.zeros(num_pages + 1, dtype=np.int64)
        self._idle_since[NULL_PAGE] = _NEVER
        self._clock = 0  # how often a page became idle
        #: ``[num_pages + 1]``: whether a page is in a reservation.
        self._is_reserved = np.zeros(num_pages + 1, dtype=np.bool_)
        self._reservations: dict[PageTable, range] = {}  # the pages after a table's last one

    @property
    def num_free(self) -> int:
        """Pages that can be handed out now, idle ones included."""
        return self._num_free

    @property
    def num_used(self) -> int:
        """Pages that are in tables."""
        return self.num_pages - self._num_free

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
        if wanted > self._num_free:
            return False
        for _ in range(wanted):
            page = self._next_page(table, self.pages_for(max_tokens) - len(table.pages))
            if page in self._retained:
                self._retained.discard(page)
                self.on_evict(page)
            self._hold(table, page)
        return True

    def share(self, table: PageTable, page: int) -> None:
        """Append a page that is in other tables or idle."""
        self._hold(table, page)

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
                self._num_free += 1
                self._clock += 1
                self._idle_since[page] = self._clock if page in self._retained else 0
        self._unreserve(table)
        table.pages = []

    def retain(self, page: int) -> None:
        """Keep what a page holds when its last table lets it go."""
        self._retained.add(page)

    def drop_retained(self) -> None:
        """Retain no page any more; idle ones are blank."""
        self._idle_since[self._idle_since < _NEVER] = 0
        self._retained.clear()

    def check_invariants(self, tables: Iterable[PageTable]) -> None:
        """Assert that the books agree with themselves and with all tables in use."""
        holders = Counter(page for table in tables for page in table.pages)
        assert NULL_PAGE not in holders
        assert self._holders == [holders[page] for page in range(self.num_pages + 1)]
        assert self.num_used == len(holders)
        for page in range(1, self.num_pages + 1):
            is_idle = 0 < self._idle_since[page] < _NEVER
            assert (self._idle_since[page] == _NEVER) == (self._holders[page] > 0)
            assert is_idle == (page in self._retained and not self._holders[page])
        reserved = Counter(page for pages in self._reservations.values() for page in pages)
        assert set(reserved.values()) <= {1}
        assert set(reserved) == set(np.flatnonzero(self._is_reserved))

    def _hold(self, table: PageTable, page: int) -> None:
        if not self._holders[page]:
            self._num_free -= 1
            self._idle_since[page] = _NEVER
        self._holders[page] += 1
        table.append(page)

    def _next_page(self, table: PageTable, wish: int) -> int:
        reserved = self._reservations.get(table, range(0))
        if not reserved or self._holders[reserved.start]:
            self._unreserve(table)
            reserved = self._find_run(wish)
            if not reserved:  # only pages reserved for others are left
                return int(self._idle_since.argmin())
            self._is_reserved[reserved.start : reserved.stop] = True
        self._is_reserved[reserved.start] = False
        self._reservations[table] = reserved[1:]
        return reserved.start

    def _find_run(self, wish: int) -> range:
        """Of the runs of ``wish`` free pages the one that was left alone longest.

        If no run is that long, of those half as long, and so on; empty if all is reserved. Blank
        pages count as left alone for ever.
        """
        run, size = range(0), 1
        # The latest time at which one of the ``size`` pages from each page on was let go.
        latest = np.where(self._is_reserved, _NEVER, self._idle_since)
        while latest.size and latest[start := int(latest.argmin())] < _NEVER:
            run = range(start, start + size)
            step = min(size, wish - size)
            if not step:
                break
            latest = np.maximum(latest[:-step], latest[step:])
            size += step
        return run

    def _unreserve(self, table: PageTable) -> None:
        pages = self._reservations.pop(table, range(0))
        self._is_reserved[pages.start : pages.stop] = False
