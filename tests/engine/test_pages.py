from __future__ import annotations

import random

import pytest

from gptj_predictor.engine.page_allocator import PageAllocator, PageTable
from gptj_predictor.engine.prefix_cache import ROOT, PrefixCache
from gptj_predictor.model.kv_cache import NULL_PAGE

SIZE = 4


class Pages:
    """An allocator with its prefix cache."""

    def __init__(self, num_pages: int, *, enabled: bool = True) -> None:
        self.allocator = PageAllocator(num_pages, SIZE)
        self.prefixes = PrefixCache(self.allocator, enabled=enabled)

    def find(self, token_ids: list[int], table: PageTable | None = None) -> int:
        """How many leading tokens are cached; a table given takes their pages."""
        return self.prefixes.lookup(token_ids, table or new_table()).num_pages * SIZE

    def filled(self, token_ids: list[int], max_tokens: int = 0) -> PageTable:
        """A table whose pages hold these tokens, known to the prefix cache."""
        table = new_table()
        cursor = self.prefixes.lookup(token_ids, table)
        assert self.allocator.extend(table, len(token_ids), max(max_tokens, len(token_ids)))
        self.prefixes.insert(token_ids, len(token_ids), table, cursor)
        return table

    def check(self, tables: list[PageTable]) -> None:
        self.allocator.check_invariants(tables)
        self.prefixes.check_invariants()


def new_table() -> PageTable:
    return PageTable(SIZE, max_pages=64)


def test_random_use_never_hands_out_twice() -> None:
    pages = Pages(39)
    allocator = pages.allocator
    draw = random.Random(1)
    held: list[PageTable] = []
    for _ in range(3000):
        if draw.random() < 0.5:
            # Few different tokens, so that many prefixes are shared.
            tokens = [draw.randrange(2) for _ in range(draw.randint(1, 40))]
            table = new_table()
            cursor = pages.prefixes.lookup(tokens, table)
            if allocator.extend(table, len(tokens), draw.randint(len(tokens), 120)):
                pages.prefixes.insert(tokens, draw.randint(0, len(tokens)), table, cursor)
                held.append(table)
            else:
                allocator.release(table)
        elif held:
            allocator.release(held.pop(draw.randrange(len(held))))
        pages.check(held)
        taken = {page for table in held for page in table.pages}
        assert len(taken) == allocator.num_used
        assert NULL_PAGE not in taken
        assert allocator.num_used + allocator.num_free == allocator.num_pages == 39
    while held:
        allocator.release(held.pop())
    assert allocator.num_used == 0
    assert allocator.num_free == 39


def test_invariants_that_are_broken_are_noticed() -> None:
    pages = Pages(8)
    table = pages.filled(list(range(8)))
    pages.check([table])
    for tables in ([], [table, table]):
        with pytest.raises(AssertionError):
            pages.check(tables)


def test_no_overcommitment() -> None:
    allocator = PageAllocator(3, SIZE)
    assert allocator.max_tokens == 12
    first, second = new_table(), new_table()
    assert allocator.extend(first, 8, 8)
    assert not allocator.extend(second, 8, 8)
    assert (allocator.num_free, second.pages) == (1, [])
    allocator.release(first)
    assert allocator.num_free == 3
    assert allocator.extend(second, 12, 12)
    assert allocator.num_free == 0


def test_pages_are_not_taken_back_twice() -> None:
    allocator = PageAllocator(3, SIZE)
    table = new_table()
    assert allocator.extend(table, 8, 8)
    pages = list(table.pages)
    allocator.release(table)
    table.pages = pages
    with pytest.raises(ValueError, match="not handed out"):
        allocator.release(table)


@pytest.mark.parametrize(("tokens", "pages"), [(1, 1), (16, 1), (17, 2), (2048, 128)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert PageAllocator(3, page_size=16).pages_for(tokens) == pages


def test_a_sequence_lies_in_one_piece_beside_others() -> None:
    """Growing in turns, each where it has room for its maximum length."""
    allocator = PageAllocator(40, SIZE)
    tables = [new_table() for _ in range(4)]
    for tokens in range(1, 41):
        for table in tables:
            assert allocator.extend(table, tokens, 40)
    for table in tables:
        assert table.extents(38) == [(table.pages[0] * SIZE, 38)]
        assert list(table.array[:10]) == table.pages


def test_room_reserved_for_one_is_given_to_another_in_need() -> None:
    allocator = PageAllocator(10, SIZE)
    modest, large = new_table(), new_table()
    assert allocator.extend(modest, 4, 40)  # one page now, all ten wished for
    assert allocator.extend(large, 36, 36)
    assert allocator.num_free == 0
    assert not allocator.extend(modest, 5, 40)
    allocator.release(large)
    assert allocator.extend(modest, 40, 40)
    assert sum(count for _, count in modest.extents(40)) == 40


def test_a_sequence_lies_in_one_piece_among_idle_pages() -> None:
    """In a full cache too, whatever the order in which its pages were let go."""
    pages = Pages(64)
    draw = random.Random(0)
    lengths = [draw.randint(3, 6) * SIZE for _ in range(100)]
    running: list[PageTable] = []
    for number, length in enumerate(lengths):
        if len(running) == 4:
            pages.allocator.release(running.pop(draw.randrange(4)))
        running.append(pages.filled([number] * length))
        assert len(running[-1].extents(length)) == 1
        pages.check(running)


def test_reserved_room_is_not_evicted_before_it_is_used() -> None:
    pages = Pages(8)
    left, right = [list(range(start, start + 8)) for start in (0, 100)]
    for table in [pages.filled(tokens) for tokens in (left, right)]:
        pages.allocator.release(table)
    table, finder = new_table(), new_table()
    assert pages.allocator.extend(table, 4, 32)  # one page now, all eight wished for
    assert pages.find([*right, 0], finder) == 8
    pages.allocator.release(finder)
    assert pages.allocator.extend(table, 16, 32)
    assert pages.find([*right, 0]) == 0
    assert len(table.extents(16)) == 1


def test_a_found_page_leaves_the_room_reserved_for_another() -> None:
    pages = Pages(8)
    tokens = list(range(16))
    pages.allocator.release(pages.filled(tokens))
    table, finder = new_table(), new_table()
    assert pages.allocator.extend(table, 4, 32)
    found = pages.find([*tokens, 0], finder)
    assert pages.allocator.extend(table, 32 - found, 32)
    assert pages.allocator.num_free == 0
    pages.check([table, finder])


def test_prefixes_are_shared_page_by_page() -> None:
    pages = Pages(39)
    tokens = list(range(100, 119))  # four full pages and three tokens
    first = pages.filled(tokens)
    second, fork = new_table(), new_table()
    assert pages.find(tokens, second) == 16
    assert second.pages == first.pages[:4]
    assert pages.allocator.num_used == 5
    assert pages.find([*tokens[:9], 1, 2, 3, 4, 5], fork) == 8
    pages.allocator.release(first)
    pages.allocator.release(second)
    assert pages.allocator.num_used == 2
    pages.allocator.release(fork)
    assert pages.allocator.num_used == 0
    # Kept although nobody holds them.
    assert pages.find(tokens) == 16


def test_the_last_token_is_always_left_to_compute() -> None:
    pages = Pages(39)
    tokens = list(range(8))
    pages.filled(tokens)
    assert pages.find(tokens) == 4
    assert pages.find([*tokens, 8]) == 8


def test_the_same_page_after_another_prefix_is_another_page() -> None:
    pages = Pages(39)
    pages.filled([1, 1, 1, 1, 7, 7, 7, 7])
    assert pages.find([2, 2, 2, 2, 7, 7, 7, 7, 0]) == 0
    assert pages.find([7, 7, 7, 7, 0]) == 0


def test_least_recently_used_goes_first_and_from_the_end() -> None:
    pages = Pages(8)
    old, new = [list(range(start, start + 16)) for start in (0, 100)]
    tables = [pages.filled(tokens) for tokens in (old, new)]
    for table in tables:
        pages.allocator.release(table)
    touched = new_table()
    assert pages.find([*old, 0], touched) == 16  # now the other is the older one
    pages.allocator.release(touched)
    assert pages.allocator.extend(new_table(), 8, 8)
    assert pages.find([*old, 0]) == 16
    assert pages.find([*new, 0]) == 8


def test_clearing() -> None:
    pages = Pages(8)
    tokens = list(range(16))
    kept = pages.filled(tokens)
    pages.allocator.release(pages.filled(list(range(50, 62))))
    pages.prefixes.clear()
    assert pages.find([*tokens, 1]) == 0
    pages.check([kept])
    pages.allocator.release(kept)
    assert (pages.allocator.num_used, pages.allocator.num_free) == (0, 8)


def test_turned_off() -> None:
    pages = Pages(8, enabled=False)
    pages.allocator.release(pages.filled(list(range(16))))
    assert pages.find(list(range(17))) == 0


def test_pages_of_equal_content_stay_where_they_are() -> None:
    """Two sequences compute the same page in one step: each keeps its own, one is found."""
    pages = Pages(8)
    tokens = list(range(9))
    first, second = new_table(), new_table()
    for table in (first, second):
        assert pages.allocator.extend(table, 9, 9)
        assert pages.prefixes.insert(tokens, 9, table, ROOT).num_pages == 2
    found = new_table()
    assert pages.find(tokens, found) == 8
    assert found.pages == first.pages[:2]
    pages.check([first, second, found])
