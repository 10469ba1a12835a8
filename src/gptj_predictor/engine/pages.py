"""Handing out the pages of the KV cache."""

from __future__ import annotations

from gptj_predictor.model.kv_cache import NULL_PAGE


class PagePool:
    """Which pages are free. Page ``NULL_PAGE`` is never handed out."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.page_size = page_size
        self._free = [page for page in range(pages) if page != NULL_PAGE]
        self._in_use: set[int] = set()
        self.total = len(self._free)

    @property
    def free(self) -> int:
        """Pages that can be handed out now."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Pages that are handed out."""
        return len(self._in_use)

    @property
    def tokens(self) -> int:
        """Tokens that all pages together can hold."""
        return self.total * self.page_size

    def pages_for(self, tokens: int) -> int:
        """Pages that a sequence of ``tokens`` tokens takes."""
        return -(-tokens // self.page_size)

    def take(self, count: int) -> list[int]:
        """Hand out ``count`` pages.

        Raises:
            ValueError: fewer are free; ask :attr:`free` first.
        """
        if count > self.free:
            raise ValueError(f"{count} pages wanted, {self.free} free")
        taken = [self._free.pop() for _ in range(count)]
        self._in_use.update(taken)
        return taken

    def give_back(self, pages: list[int]) -> None:
        """Take pages back.

        Raises:
            ValueError: one of them was not handed out.
        """
        foreign = [page for page in pages if page not in self._in_use]
        if foreign or len(set(pages)) != len(pages):
            raise ValueError(f"pages {pages} are not all handed out once")
        self._in_use.difference_update(pages)
        self._free.extend(reversed(pages))
