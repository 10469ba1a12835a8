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
    contexts = [[(0, length)] for length in (3, 3, 3, 9, 1, 30, 2)]
    groups = CastDecode()._make_groups(contexts, heads=1, head_size=1)
    # Three of 3 and one of 9 would be 36 with their padding; one context is taken whatever it is.
    assert [(group.rows.start, group.rows.stop) for group in groups] == [
        (0, 3),
        (3, 4),
        (4, 5),
        (5, 6),
        (6, 7),
    ]
    assert [group.keys.shape[2] for group in groups] == [3, 9, 1, 30, 2]
    assert CastDecode()._make_groups([], heads=1, head_size=1) == []
