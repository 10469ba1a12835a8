from __future__ import annotations

import random

import pytest

from gptj_predictor.engine.pages import PagePool
from gptj_predictor.model.kv_cache import NULL_PAGE


def test_random_use_never_hands_out_twice() -> None:
    pool = PagePool(40, page_size=16)
    draw = random.Random(1)
    held: list[list[int]] = []
    for _ in range(2000):
        wanted = draw.randint(0, 12)
        if wanted <= pool.free and draw.random() < 0.6:
            held.append(pool.take(wanted))
        elif held:
            pool.give_back(held.pop(draw.randrange(len(held))))
        flat = [page for pages in held for page in pages]
        assert len(flat) == len(set(flat)) == pool.used
        assert NULL_PAGE not in flat
        assert pool.used + pool.free == pool.total == 39


def test_no_overcommitment() -> None:
    pool = PagePool(4, page_size=16)
    assert pool.tokens == 48
    taken = pool.take(2)
    with pytest.raises(ValueError, match="2 pages wanted, 1 free"):
        pool.take(2)
    assert pool.free == 1
    pool.give_back(taken)
    assert pool.free == 3


@pytest.mark.parametrize("foreign", [[NULL_PAGE], [3, 3], [1, 99]])
def test_foreign_pages_are_not_taken_back(foreign: list[int]) -> None:
    pool = PagePool(4, page_size=16)
    pool.take(3)
    with pytest.raises(ValueError, match="not all handed out once"):
        pool.give_back(foreign)
    assert pool.used == 3


@pytest.mark.parametrize(("tokens", "pages"), [(1, 1), (16, 1), (17, 2), (2048, 128)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert PagePool(4, page_size=16).pages_for(tokens) == pages
