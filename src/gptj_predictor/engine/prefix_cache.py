"""Finds pages that hold the beginning of a prompt already.

A full page is known by its tokens and by the page before it. So cached pages form a tree of
prefixes, and sequences that begin alike share them. A table lets its last page go first
(:meth:`PageAllocator.release`), so the end of a prefix goes before its beginning. A page that is
left although the one before it is gone is never found, and goes in its turn.
"""

from __future__ import annotations

from typing import NamedTuple

from gptj_predictor.engine.page_allocator import PageAllocator, PageTable

#: A cached page's key: the node of the page before it, and its tokens.
_Key = tuple[int, tuple[int, ...]]


class PrefixCursor(NamedTuple):
    """How far a table's pages are in the prefix cache."""

    num_pages: int = 0  # leading pages that are there, or others with the same tokens
    node: int = 0  # number of the last one's node; 0 is the root


#: Nothing is in the prefix cache.
ROOT = PrefixCursor()


class PrefixCache:
    """The tree of cached pages."""

    def __init__(self, allocator: PageAllocator, *, enabled: bool = True) -> None:
        """If not ``enabled``, nothing is inserted, so nothing is found."""
        self._allocator = allocator
        self._enabled = enabled
        self._nodes: dict[_Key, tuple[int, int]] = {}  # to the node's number and its page
        self._keys: dict[int, _Key] = {}  # by page
        self._last_node = 0
        allocator.on_evict = self._evict

    def lookup(self, token_ids: list[int], table: PageTable) -> PrefixCursor:
        """Put the pages that hold the leading tokens into an empty table.

        The last token is never among them: it must be computed for its logits.
        """
        size = self._allocator.page_size
        cursor = ROOT
        for end in range(size, len(token_ids), size):
            found = self._nodes.get((cursor.node, tuple(token_ids[end - size : end])))
            if found is None:
                break
            node, page = found
            self._allocator.share(table, page)
            cursor = PrefixCursor(cursor.num_pages + 1, node)
        return cursor

    def insert(
        self, token_ids: list[int], num_cached_tokens: int, table: PageTable, cursor: PrefixCursor
    ) -> PrefixCursor:
        """Insert a sequence's full pages from ``cursor`` on, as far as their tokens are known.

        Args:
            token_ids: The known tokens.
            num_cached_tokens: Tokens whose keys and values are in the pages, or will be before a
                later step reads them.
            table: The pages.
            cursor: What the last call for this sequence returned.
        """
        size = self._allocator.page_size
        full = min(num_cached_tokens, len(token_ids)) // size
        if not self._enabled or full <= cursor.num_pages:
            return cursor
        node = cursor.node
        for index in range(cursor.num_pages, full):
            key = (node, tuple(token_ids[index * size : (index + 1) * size]))
            # If another sequence has computed the same page, both keep their copy.
            if key not in self._nodes:
                self._last_node += 1
                self._nodes[key] = self._last_node, table.pages[index]
                self._keys[table.pages[index]] = key
                self._allocator.retain(table.pages[index])
            node = self._nodes[key][0]
        return PrefixCursor(full, node)

    def clear(self) -> None:
        """Drop everything: what the pages hold cannot be trusted any more."""
        self._nodes.clear()
        self._keys.clear()
        self._allocator.drop_retained()

    def check_invariants(self) -> None:
        """Assert that the tree agrees with its index."""
        assert len(self._nodes) == len(self._keys)
        assert all(self._nodes[key][1] == page for page, key in self._keys.items())

    def _evict(self, page: int) -> None:
        del self._nodes[self._keys.pop(page)]
