"""The fused kernel, in Triton's interpreter, against the general sampler."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gptj_predictor.sampling.fused import sample_options
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.sampling.rows import MAX_ENDS, RowTable
from gptj_predictor.sampling.sampler import Sampler
from tests.support.gpu_step import sample_fused
from tests.support.sampling import CONTEXT, params

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="its tensors are on the CPU"),
]

EOS = (0, 2)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def compare(logits: torch.Tensor, chosen: list[SamplingParams], draw: random.Random) -> list[int]:
    """Both samplers' tokens, which are equal, of rows at any batch indices and lengths."""
    count = len(chosen)
    indices = draw.sample(range(count + 2), count)
    lengths = [draw.randrange(1, CONTEXT) for _ in chosen]
    table = torch.full((count + 2, CONTEXT), 9)
    before = table.clone()
    tokens, general = sample_fused(EOS, logits.clone(), chosen, table, indices, lengths)
    assert not general
    wanted = Sampler(EOS).sample(
        logits.float(),
        chosen,
        np.array(lengths),
        [1] * count,
        before,
        torch.tensor([indices, lengths]),
    )
    assert tokens == wanted.tolist()
    before[indices, lengths] = wanted.clamp(min=0)
    assert torch.equal(table, before), "wrote elsewhere"
    return tokens


CASES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"temperature": 0.01},
    {"temperature": 5.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.9},
    {"top_p": 1e-9},
    {"top_p": 0.999},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
    {"min_length": CONTEXT, "temperature": 0.0},
    {"min_length": CONTEXT, "stop_token_ids": (1, 4, 3), "top_k": 3},
    {"min_length": CONTEXT, "stop_token_ids": (1,), "ignore_eos": True, "top_p": 0.5},
]


@pytest.mark.parametrize("vocabulary", [11, 64, 67, 4096, 9000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokens_are_the_general_sampler_s(dtype: torch.dtype, vocabulary: int) -> None:
    """Vocabularies of one block, of whole blocks, and with a tail; every bit of the seed."""
    draw = random.Random(vocabulary)
    generator = torch.Generator().manual_seed(vocabulary)
    cases = draw.sample(CASES, 6) if vocabulary > 4000 else CASES
    rows = [
        params(**({**case, "top_k": min(case.get("top_k", 0), vocabulary + 1)}), seed=seed)
        for case in cases
        for seed in [draw.randrange(-(2**63), 2**63)]
    ]
    logits = torch.randn(len(rows), vocabulary, generator=generator) * 3 - 1
    compare(logits.to(dtype), rows, draw)


@settings(deadline=None, max_examples=15, phases=[Phase.reuse, Phase.generate])  # it is slow
@given(data=st.data())
def test_any_rows(data: st.DataObject) -> None:
    """Logits of few different values have ties everywhere: at top-k's border, and at top-p's.

    Not more than the general sampler keeps beside the k-th; and top-p is such that no sum of equal
    shares is just that.
    """
    vocabulary = data.draw(st.integers(1, 64), "vocabulary")
    seed = data.draw(st.integers(0, 2**32), "seed")
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    spread = data.draw(st.sampled_from([0.1, 1.0, 8.0]), "spread")
    logits = torch.randn(3, vocabulary, generator=generator) * spread
    if data.draw(st.booleans(), "ties"):
        logits = (logits * 2).round() / 2
    rows = [
        params(
            temperature=data.draw(st.sampled_from([0.3, 1.0, 2.7])),
            top_k=data.draw(st.sampled_from([0, 1, 2, 7, 64, 100])),
            top_p=data.draw(st.sampled_from([1.0, 0.9871, 0.6173, 0.1139])),
            min_p=data.draw(st.sampled_from([0.0, 0.05, 0.7])),
            seed=data.draw(st.integers(-(2**63), 2**63 - 1)),
        )
        for _ in logits
    ]
    compare(logits.to(data.draw(st.sampled_from(DTYPES), "dtype")), rows, draw)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_to_choose_from(dtype: torch.dtype) -> None:
    """A row of NaN is told apart, for the greedy and for the others; its neighbors are served."""
    logits = torch.zeros(4, 40)
    logits[0, 3] = torch.nan
    logits[1, 3] = torch.inf
    logits[2, 3] = 9
    logits[3] = -torch.inf
    for temperature in (0.0, 0.1):
        rows = [params(temperature=temperature) for _ in range(4)]
        assert compare(logits.to(dtype), rows, random.Random(1)) == [-1, -1, 3, -1]


def test_equal_logits_are_dropped_from_the_first() -> None:
    """Top-p among equals keeps the last ones, as a stable sort does, and a draw finds each."""
    logits = torch.zeros(60, 10)
    rows = [params(top_p=0.35, seed=seed) for seed in range(60)]
    assert set(compare(logits, rows, random.Random(2))) == {6, 7, 8, 9}


def test_a_row_does_not_see_its_neighbors() -> None:
    generator = torch.Generator().manual_seed(8)
    rows = [params(**case, seed=seed) for seed, case in enumerate(CASES)]
    logits = torch.randn(len(rows), 50, generator=generator) * 3
    table = torch.zeros(len(rows), CONTEXT, dtype=torch.int64)
    indices, lengths = list(range(len(rows))), [40] * len(rows)
    together, _ = sample_fused(EOS, logits.clone(), rows, table, indices, lengths)
    alone = [
        sample_fused(EOS, logits[[i]], [rows[i]], table, [i], [40])[0][0] for i in range(len(rows))
    ]
    assert together == alone


GENERAL: list[dict[str, Any]] = [
    {"logit_bias": ((5, 3.0),)},
    {"repetition_penalty": 1.1},
    {"presence_penalty": 0.5},
    {"frequency_penalty": -0.5},
    {"typical_p": 0.9},
    {"logprobs": 0},
    {"min_length": 50, "stop_token_ids": tuple(range(3, 10))},  # with EOS one more than there is
]


@pytest.mark.parametrize("case", GENERAL, ids=str)
def test_rows_for_the_general_sampler(case: dict[str, Any]) -> None:
    """They are known as such, and their logits are left as they are."""
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    table = torch.zeros(2, CONTEXT, dtype=torch.int64)
    rows = [params(**({"min_length": 90} | case)), params(min_length=90)]
    _, general = sample_fused(EOS, logits, rows, table, [1, 0], [20, 20])
    assert general == [0]
    assert torch.equal(logits[0], before[0])
    assert logits[1, list(EOS)].isneginf().all()


def test_as_many_ends_as_there_is_room_for() -> None:
    stops = tuple(range(3, 3 + MAX_ENDS - len(EOS)))
    rows = [params(min_length=CONTEXT, stop_token_ids=stops, temperature=0.0)]
    logits = torch.zeros(1, 40)
    logits[0, [*EOS, *stops]] = 9
    logits[0, 30] = 1
    assert compare(logits, rows, random.Random(1)) == [30]


def test_ends_are_allowed_from_the_minimum_length_on() -> None:
    logits = torch.zeros(2, 40)
    logits[:, 2] = 9
    table = torch.zeros(2, CONTEXT, dtype=torch.int64)
    rows = [params(min_length=50, temperature=0.0)] * 2
    tokens, _ = sample_fused(EOS, logits, rows, table, [0, 1], [49, 50])
    assert tokens == [1, 2]  # 0 and 2 are ends


def test_a_place_is_taken_over() -> None:
    """Nothing is left of who had the batch index before."""
    table = RowTable(1, 40, EOS)
    table.set(0, params(min_length=90, stop_token_ids=(5, 6, 7), typical_p=0.5, top_k=3))
    assert table.general(np.array([0])).tolist() == [0]
    table.set(0, params(temperature=0.5))
    assert table.general(np.array([0])).tolist() == []
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(1))
    compare(logits, [params(temperature=0.5)], random.Random(3))


def test_fixed_point_sums_fit() -> None:
    """The sum of a whole row's probabilities stays below 2 ** 63 and keeps what bits there are."""
    for vocabulary in (1, 2, 40, 50_400, 65_536, 65_537, 300_000):
        one = sample_options(vocabulary, torch.float32)["one"]
        assert 2**61 < one * vocabulary <= 2**62 or one == 2**62


def test_refused() -> None:
    table = torch.zeros(2, CONTEXT, dtype=torch.int64)
    with pytest.raises(ValueError, match="must be contiguous"):
        sample_fused(EOS, torch.zeros(40, 2).mT, [params()] * 2, table, [0, 1], [3, 3])
    with pytest.raises(ValueError, match=r"no kernel for torch\.float64 logits"):
        sample_fused(EOS, torch.zeros(1, 40).double(), [params()], table, [0], [3])
    assert sample_fused(EOS, torch.zeros(0, 40), [], table, [], []) == ([], [])
