"""Handing out the pages of the KV cache, and finding those that hold a prompt already.

A full page is known by its tokens and by the page before it, so pages form a tree of prefixes and
two sequences with the same leading tokens share them. A page that nobody holds any more stays in
the tree until its space is needed; the one that was let go first goes first. Within a sequence the
last page is let go first, so no page outlives the one before it.

Pages of one sequence are neighbours where that can be had, since attention reads a run of pages as
one stretch of memory: a sequence starts where there is room for its greatest length, and others
start elsewhere as long as there is an elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gptj_predictor.model.kv_cache import NULL_PAGE, Extent

_FREE, _MARKED, _TAKEN = b"fmt"
_ROOT = 0

_Key = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class _Prefix:
    """A full page in the tree: its key is its parent's ``identity`` and its tokens."""

    identity: int
    page: int
    key: _Key


class PageTable:
    """One sequence's pages in order.

    Attributes:
        row: The same as an int32 array of the longest context's pages, padded with ``NULL_PAGE``.
    """

    def __init__(self, page_size: int, most_pages: int) -> None:
        self.page_size = page_size
        self.pages: list[int] = []
        self.row: NDArray[np.int32] = np.full(most_pages, NULL_PAGE, dtype=np.int32)
        self._runs: list[list[int]] = []  # first page, pages
        self.marked = range(0)  # pages after the last one that were kept for it
        self.entered = 0  # leading pages that are in the tree
        self.parent = _ROOT  # the last of them, or the page that stands there in its place

    def append(self, page: int) -> None:
        """Add a page at the end."""
        self.row[len(self.pages)] = page
        self.pages.append(page)
        if self._runs and sum(self._runs[-1]) == page:
            self._runs[-1][1] += 1
        else:
            self._runs.append([page, 1])

    def extents(self, tokens: int) -> list[Extent]:
        """Where the first ``tokens`` tokens lie: slots, in as few pieces as possible."""
        extents = []
        for first, pages in self._runs:
            if tokens <= 0:
                break
            extents.append((first * self.page_size, min(tokens, pages * self.page_size)))
            tokens -= pages * self.page_size
        return extents


@dataclass
class _Page:
    holders: int = 0
    prefix: _Prefix | None = field(default=None, repr=False)


class PageAllocator:
    """All pages but ``NULL_PAGE``, which is never handed out."""

    def __init__(self, pages: int, page_size: int, *, reuse: bool = True) -> None:
        """``reuse`` turns the sharing of prefixes on."""
        self.page_size = page_size
        self.total = pages - 1
        self._reuse = reuse
        self._map = bytearray([_FREE]) * pages
        self._map[NULL_PAGE] = _TAKEN
        self._blank = self.total
        self._pages = [_Page() for _ in range(pages)]
        self._tree: dict[_Key, _Prefix] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # in the tree, held by nobody
        self._identities = _ROOT

    @property
    def free(self) -> int:
        """Pages that can be handed out now, remembered prefixes included."""
        return self._blank + len(self._idle)

    @property
    def used(self) -> int:
        """Pages that sequences hold."""
        return self.total - self.free

    @property
    def tokens(self) -> int:
        """Tokens that all pages together can hold."""
        return self.total * self.page_size

    def pages_for(self, tokens: int) -> int:
        """Pages that ``tokens`` tokens take."""
        return -(-tokens // self.page_size)

    def find_prefix(self, token_ids: list[int], table: PageTable) -> int:
        """Put the pages that hold the leading tokens into an empty table.

        Returns:
            How many tokens they hold: whole pages, and never the last token, which has to be
            computed for its logits.
        """
        size = self.page_size
        for end in range(size, len(token_ids), size):
            prefix = self._tree.get((table.parent, tuple(token_ids[end - size : end])))
            if prefix is None:
                break
            self._hold(prefix.page)
            table.append(prefix.page)
            table.parent = prefix.identity
            table.entered += 1
        return len(table.pages) * size

    def enter_prefix(self, token_ids: list[int], cached: int, table: PageTable) -> None:
        """Enter a table's full pages into the tree, as far as their tokens are known.

        Args:
            token_ids: The sequence's known tokens.
            cached: How many tokens' keys and values are in the pages, or will be before any later
                step reads them.
            table: The sequence's pages.
        """
        if not self._reuse:
            return
        size = self.page_size
        for index in range(table.entered, min(cached, len(token_ids)) // size):
            key = (table.parent, tuple(token_ids[index * size : (index + 1) * size]))
            prefix = self._tree.get(key)
            if prefix is None:  # else another sequence computed the same; both keep their copy
                self._identities += 1
                prefix = _Prefix(self._identities, table.pages[index], key)
                self._tree[key] = self._pages[prefix.page].prefix = prefix
            table.parent = prefix.identity
            table.entered += 1

    def extend(self, table: PageTable, tokens: int, most_tokens: int) -> bool:
        """Append pages until the table holds ``tokens`` tokens.

        Args:
            table: The sequence's pages.
            tokens: How many tokens it must hold.
            most_tokens: How many it may come to hold.

        Returns:
            Whether there were enough pages; if not, nothing was handed out.
        """
        wanted = self.pages_for(tokens) - len(table.pages)
        if wanted > self.free:
            return False
        for _ in range(wanted):
            page = self._next_page(table, self.pages_for(most_tokens) - len(table.pages))
            self._map[page] = _TAKEN
            self._blank -= 1
            self._pages[page].holders = 1
            table.append(page)
        return True

    def release(self, table: PageTable) -> None:
        """Take back a table's pages; those in the tree stay there until their space is needed."""
        for page in reversed(table.pages):
            entry = self._pages[page]
            if entry.holders < 1:
                raise ValueError(f"page {page} is not handed out")
            entry.holders -= 1
            if entry.holders:
                continue
            if entry.prefix is not None:
                self._idle[page] = None
            else:
                self._blank_out(page)
        self._unmark(table)
        table.pages = []

    def forget_prefixes(self) -> None:
        """Empty the tree: what the pages hold cannot be trusted any more."""
        for prefix in self._tree.values():
            self._pages[prefix.page].prefix = None
        self._tree.clear()
        for page in self._idle:
            self._blank_out(page)
        self._idle.clear()

    def _hold(self, page: int) -> None:
        self._idle.pop(page, None)
        self._pages[page].holders += 1

    def _next_page(self, table: PageTable, wish: int) -> int:
        if table.marked and self._map[table.marked.start] == _MARKED:
            page = table.marked.start
            table.marked = table.marked[1:]
            return page
        self._unmark(table)
        run = self._find_run(wish)
        if run:
            self._map[run.start : run.stop] = bytes([_MARKED]) * len(run)
            table.marked = run[1:]
            return run.start
        return self._map.index(_MARKED)  # only pages kept for others are left

    def _find_run(self, wish: int) -> range:
        """The longest run of free pages up to ``wish``, forgetting as many pages to make one."""
        forgettable = wish
        while wish:
            start = self._map.find(bytes([_FREE]) * wish)
            if start >= 0:
                return range(start, start + wish)
            if forgettable and self._idle:
                forgettable -= 1
                self._forget_oldest()
            else:
                wish //= 2
        return range(0)

    def _forget_oldest(self) -> None:
        page, _ = self._idle.popitem(last=False)
        prefix = self._pages[page].prefix
        assert prefix is not None
        del self._tree[prefix.key]
        self._pages[page].prefix = None
        self._blank_out(page)

    def _blank_out(self, page: int) -> None:
        self._map[page] = _FREE
        self._blank += 1

    def _unmark(self, table: PageTable) -> None:
        for page in table.marked:
            if self._map[page] == _MARKED:
                self._map[page] = _FREE
        table.marked = range(0)
