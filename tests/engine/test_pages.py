from __future__ import annotations

import random

import pytest

from gptj_predictor.engine.pages import PageAllocator, PageTable
from gptj_predictor.model.kv_cache import NULL_PAGE
from tests.support.engines import check_pool

SIZE = 4


def table(pages: int = 64) -> PageTable:
    return PageTable(SIZE, pages)


def filled(pool: PageAllocator, token_ids: list[int], most: int = 0) -> PageTable:
    """A table whose pages hold these tokens, known to the tree."""
    one = table()
    pool.find_prefix(token_ids, one)
    assert pool.extend(one, len(token_ids), max(most, len(token_ids)))
    pool.enter_prefix(token_ids, len(token_ids), one)
    return one


def test_random_use_never_hands_out_twice() -> None:
    pool = PageAllocator(40, SIZE)
    draw = random.Random(1)
    held: list[PageTable] = []
    for _ in range(3000):
        if draw.random() < 0.5:
            # Few different tokens, so that many prefixes are shared.
            tokens = [draw.randrange(2) for _ in range(draw.randint(1, 40))]
            one = table()
            pool.find_prefix(tokens, one)
            if pool.extend(one, len(tokens), draw.randint(len(tokens), 120)):
                pool.enter_prefix(tokens, draw.randint(0, len(tokens)), one)
                held.append(one)
            else:
                pool.release(one)
        elif held:
            pool.release(held.pop(draw.randrange(len(held))))
        check_pool(pool, held)
        pages = {page for one in held for page in one.pages}
        assert len(pages) == pool.used
        assert NULL_PAGE not in pages
        assert pool.used + pool.free == pool.total == 39
    while held:
        pool.release(held.pop())
    assert pool.used == 0
    assert pool.free == 39


def test_no_overcommitment() -> None:
    pool = PageAllocator(4, SIZE)
    assert pool.tokens == 12
    first, second = table(), table()
    assert pool.extend(first, 8, 8)
    assert not pool.extend(second, 8, 8)
    assert (pool.free, second.pages) == (1, [])
    pool.release(first)
    assert pool.free == 3
    assert pool.extend(second, 12, 12)
    assert pool.free == 0


def test_pages_are_not_taken_back_twice() -> None:
    pool = PageAllocator(4, SIZE)
    one = table()
    assert pool.extend(one, 8, 8)
    pages = list(one.pages)
    pool.release(one)
    one.pages = pages
    with pytest.raises(ValueError, match="not handed out"):
        pool.release(one)


@pytest.mark.parametrize(("tokens", "pages"), [(1, 1), (16, 1), (17, 2), (2048, 128)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert PageAllocator(4, page_size=16).pages_for(tokens) == pages


def test_a_sequence_lies_in_one_piece_beside_others() -> None:
    """Growing in turns, each where it has room for its greatest length."""
    pool = PageAllocator(41, SIZE)
    tables = [table() for _ in range(4)]
    for tokens in range(1, 41):
        for one in tables:
            assert pool.extend(one, tokens, 40)
    for one in tables:
        assert one.extents(38) == [(one.pages[0] * SIZE, 38)]
        assert list(one.row[:10]) == one.pages


def test_room_kept_for_one_is_given_to_another_in_need() -> None:
    pool = PageAllocator(11, SIZE)
    modest, large = table(), table()
    assert pool.extend(modest, 4, 40)  # one page now, all ten wished for
    assert pool.extend(large, 36, 36)
    assert pool.free == 0
    assert not pool.extend(modest, 5, 40)
    pool.release(large)
    assert pool.extend(modest, 40, 40)
    assert sum(count for _, count in modest.extents(40)) == 40


def test_prefixes_are_shared_page_by_page() -> None:
    pool = PageAllocator(40, SIZE)
    tokens = list(range(100, 119))  # four full pages and three tokens
    first = filled(pool, tokens)
    second = table()
    assert pool.find_prefix(tokens, second) == 16
    assert second.pages == first.pages[:4]
    assert pool.used == 5
    fork = table()
    assert pool.find_prefix([*tokens[:9], 1, 2, 3, 4, 5], fork) == 8
    pool.release(first)
    pool.release(second)
    assert pool.used == 2
    pool.release(fork)
    assert pool.used == 0
    # Remembered although nobody holds them.
    again = table()
    assert pool.find_prefix(tokens, again) == 16


def test_the_last_token_is_always_left_to_compute() -> None:
    pool = PageAllocator(40, SIZE)
    tokens = list(range(8))
    filled(pool, tokens)
    assert pool.find_prefix(tokens, table()) == 4
    assert pool.find_prefix([*tokens, 8], table()) == 8


def test_the_same_page_after_another_prefix_is_another_page() -> None:
    pool = PageAllocator(40, SIZE)
    filled(pool, [1, 1, 1, 1, 7, 7, 7, 7])
    assert pool.find_prefix([2, 2, 2, 2, 7, 7, 7, 7, 0], table()) == 0
    assert pool.find_prefix([7, 7, 7, 7, 0], table()) == 0


def test_least_recently_used_goes_first_and_from_the_end() -> None:
    pool = PageAllocator(9, SIZE)  # eight pages
    old, new = [list(range(start, start + 16)) for start in (0, 100)]
    tables = [filled(pool, tokens) for tokens in (old, new)]
    for one in tables:
        pool.release(one)
    touched = table()
    assert pool.find_prefix([*old, 0], touched) == 16  # now the other is the older one
    pool.release(touched)
    taker = table()
    assert pool.extend(taker, 8, 8)
    assert pool.find_prefix([*old, 0], table()) == 16
    assert pool.find_prefix([*new, 0], table()) == 8


def test_forgetting_everything() -> None:
    pool = PageAllocator(9, SIZE)
    tokens = list(range(16))
    kept = filled(pool, tokens)
    pool.release(filled(pool, list(range(50, 62))))
    pool.forget_prefixes()
    assert pool.find_prefix([*tokens, 1], table()) == 0
    check_pool(pool, [kept])
    pool.release(kept)
    assert (pool.used, pool.free) == (0, 8)


def test_reuse_turned_off() -> None:
    pool = PageAllocator(9, SIZE, reuse=False)
    pool.release(filled(pool, list(range(16))))
    assert pool.find_prefix(list(range(17)), table()) == 0
