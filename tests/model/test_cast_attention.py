"""Decoding in fp32 from a cache of 16 bits: groups, padding, contexts in several pieces."""

from __future__ import annotations

import pytest
import torch

from gptj_predictor.model import cast_attention
from gptj_predictor.model.cast_attention import CastDecode
from gptj_predictor.model.kv_cache import Extent, LayerCache
from gptj_predictor.model.step_inputs import StepInputs

HEADS, SIZE, PAGES, PAGE_SIZE = 3, 16, 24, 4
TOKEN_BYTES = 2 * HEADS * SIZE * torch.float32.itemsize

BATCHES: dict[str, list[list[Extent]]] = {
    "one": [[(0, 7)]],
    "of one length": [[(4 * n, 4)] for n in range(9)],
    "of all lengths": [[(0, 1)], [(8, 5)], [(20, 2)], [(40, 17)], [(60, 3)], [(2, 11)]],
    "in pieces": [[(0, 4), (40, 4), (8, 3)], [(12, 2)], [(4, 4), (60, 1)]],
    "later ones first": [[(80 - 8 * n, 5)] for n in range(7)],
    "of one prefix": [[(8, 4), (16 + 8 * n, 1 + n)] for n in range(6)],
}


def step_of(contexts: list[list[Extent]]) -> StepInputs:
    none = torch.empty(0, dtype=torch.int64)
    lengths = torch.tensor([sum(count for _, count in extents) for extents in contexts])
    return StepInputs(none, none, none, none[None], lengths, contexts, [])


def attend_exactly(
    queries: torch.Tensor, cache: LayerCache, contexts: list[list[Extent]]
) -> torch.Tensor:
    keys, values = (half.flatten(0, 1).double() for half in cache)
    rows = []
    for query, extents in zip(queries.double(), contexts, strict=True):
        slots = torch.cat([torch.arange(at, at + count) for at, count in extents])
        scores = torch.einsum("hd,thd->ht", query, keys[slots]) / SIZE**0.5
        rows.append(torch.einsum("ht,thd->hd", scores.softmax(1), values[slots]))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 12, 1000], ids="limit of {} tokens".format)
@pytest.mark.parametrize("batch", BATCHES)
def test_attends_to_each_context(
    monkeypatch: pytest.MonkeyPatch, batch: str, tokens: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(cast_attention, "_GROUP_BYTES", tokens * TOKEN_BYTES)
    contexts, decode = BATCHES[batch], CastDecode()
    queries = torch.randn(len(contexts), HEADS, SIZE).to(dtype)
    step = step_of(contexts)
    for _ in range(2):  # two layers of a step
        cache = LayerCache(torch.randn(2, PAGES, PAGE_SIZE, HEADS, SIZE).to(dtype))
        out = torch.full_like(queries, float("nan"))
        decode(queries, cache, step, out)
        wanted = attend_exactly(queries, cache, contexts)
        torch.testing.assert_close(out.double(), wanted, rtol=1e-2, atol=1e-2)


def test_a_row_that_is_not_finite_harms_no_other() -> None:
    """Neither beside it nor in the next step, where its memory is used again."""
    cache = LayerCache(torch.randn(2, PAGES, PAGE_SIZE, HEADS, SIZE).bfloat16())
    cache.both.flatten(1, 2)[:, 40:50] = float("nan")
    queries, decode = torch.randn(2, HEADS, SIZE).bfloat16(), CastDecode()
    for contexts in ([(40, 10)], [(0, 3)]), ([(0, 3)], [(4, 6)]):
        out = torch.empty_like(queries)
        decode(queries, cache, step_of(list(contexts)), out)
        for row, [(at, _)] in enumerate(contexts):
            assert out[row].isfinite().all() == (at != 40)


def test_groups_hold_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    # Room for twelve tokens of one head of one value.
    monkeypatch.setattr(cast_attention, "_GROUP_BYTES", 12 * 2 * torch.float32.itemsize)
    contexts = [[(0, length)] for length in (3, 3, 2, 3, 9, 1, 30, 2, 2)]
    groups = CastDecode()._make_groups(contexts, heads=1, head_size=1)
    # Four of 3 are 12 with their padding, six of 9 would be 54; two are taken whatever they are.
    assert [(group.rows.start, group.rows.stop) for group in groups] == [
        (0, 4),
        (4, 6),
        (6, 8),
        (8, 9),
    ]
    assert [group.keys.shape[2] for group in groups] == [3, 9, 30, 2]
    assert CastDecode()._make_groups([], heads=1, head_size=1) == []


def test_two_contexts_are_copied_in_one_operation() -> None:
    """Where the second begins later than the first, whatever extents they have."""
    contexts: list[list[Extent]] = [[(0, 6)], [(40, 3)], [(8, 2), (20, 6)], [(12, 3)]]
    [group] = CastDecode()._make_groups(contexts, heads=1, head_size=1)
    shapes = [(stretch.at, stretch.tokens, stretch.to_second) for stretch in group.stretches]
    assert shapes == [
        (0, 2, 8),
        (2, 4, 18),
        (24, 2, None),
        (40, 3, None),  # the other begins earlier
        (12, 3, None),
    ]
    assert [copy.shape[0] for copy in group.copies] == [2] * 5  # two contexts, or keys and values
