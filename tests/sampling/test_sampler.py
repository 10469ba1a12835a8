from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from gptj_predictor.sampling.draws import drop_below_min_p, drop_untypical, uniform
from gptj_predictor.sampling.logprobs import Logprobs
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.sampling.sampler import Sampler
from tests.support.reference import EOS, OutputPenalty
from tests.support.sampling import params

VOCABULARY = 40


#: Parameters, tokens so far, and how many of these are the prompt's.
Row = tuple[SamplingParams, list[int], int]


def row(chosen: SamplingParams, tokens: list[int] | None = None, prompt: int = 2) -> Row:
    return chosen, tokens or [1, 2, 3], prompt


def sample(eos: tuple[int, ...], logits: torch.Tensor, rows: list[Row]) -> list[int]:
    """Put the rows' tokens at batch indices in reverse order, among others' leftovers."""
    lengths = np.array([len(tokens) for _, tokens, _ in rows])
    shape = (len(rows), int(lengths.max()) + 3)
    table = torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))
    indices = list(reversed(range(len(rows))))
    for index, (_, tokens, _) in zip(indices, rows, strict=True):
        table[index, : len(tokens)] = torch.tensor(tokens)
    places = torch.tensor([indices, lengths.tolist()])
    chosen = [params for params, _, _ in rows]
    prompts = [prompt for _, _, prompt in rows]
    return Sampler(eos).sample(logits, chosen, lengths, prompts, table, places).tolist()


def reference_probabilities(
    logits: torch.Tensor, tokens: list[int], prompt: int, chosen: SamplingParams
) -> torch.Tensor:
    """What transformers' processors, in the order of ``generate``, leave to draw from."""
    processors = LogitsProcessorList()
    if chosen.logit_bias:
        bias: list[list[list[int] | float]] = [[[token], v] for token, v in chosen.logit_bias]
        processors.append(SequenceBiasLogitsProcessor(bias))
    if chosen.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(chosen.repetition_penalty))
    processors.append(OutputPenalty(prompt, chosen))
    ends = [*chosen.stop_token_ids, *([] if chosen.ignore_eos else [EOS])]
    if ends:
        processors.append(MinLengthLogitsProcessor(chosen.min_length, ends, device="cpu"))
    processors.append(TemperatureLogitsWarper(float(chosen.temperature)))
    if chosen.top_k:
        processors.append(TopKLogitsWarper(chosen.top_k))
    if chosen.top_p < 1:
        processors.append(TopPLogitsWarper(chosen.top_p))
    if chosen.min_p:
        processors.append(MinPLogitsWarper(chosen.min_p))
    if chosen.typical_p < 1:
        processors.append(TypicalLogitsWarper(chosen.typical_p))
    ids = cast("torch.LongTensor", torch.tensor([tokens]))
    scores = cast("torch.FloatTensor", logits[None].clone())
    return processors(ids, scores)[0].softmax(-1)


BIAS = ((5, 3.0), (3, -100.0), (21, -1.5), (30, 2.0))

CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": VOCABULARY},
    {"top_p": 0.7},
    {"top_p": 0.01},
    {"temperature": 1.5, "top_k": 12, "top_p": 0.8},
    {"repetition_penalty": 2.0, "top_k": 10},
    {"repetition_penalty": 0.5, "top_p": 0.9},
    {"min_length": 10, "temperature": 0.7},
    {"min_length": 10, "repetition_penalty": 1.2, "temperature": 0.7, "top_k": 20, "top_p": 0.95},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_p": 0.02, "temperature": 2.0, "top_p": 0.9},
    {"min_p": 0.2, "temperature": 2.0, "top_k": 12},
    {"typical_p": 0.3},
    {"typical_p": 0.9, "temperature": 1.7},
    {"typical_p": 0.5, "top_k": 15, "top_p": 0.95, "min_p": 0.01},
    {"presence_penalty": 2.0},
    {"presence_penalty": -1.5, "top_k": 12},
    {"frequency_penalty": 0.9, "temperature": 1.5},
    {"frequency_penalty": -0.4, "presence_penalty": 1.0, "repetition_penalty": 1.3},
    {"logit_bias": BIAS},
    {"logit_bias": BIAS, "repetition_penalty": 1.5, "presence_penalty": 0.5, "top_p": 0.9},
    {"stop_token_ids": (5, 9), "min_length": 10},
    {"stop_token_ids": (5, 9), "min_length": 10, "ignore_eos": True, "typical_p": 0.95},
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_distribution_is_the_reference_s(case: dict[str, Any], large: bool) -> None:
    """Chi-square of many draws, all rows of one batch, against transformers' probabilities."""
    draws = 200_000 if large else 20_000
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(4)) * 2
    tokens, prompt = [3, 17, 3, EOS, 5, 3, 9, 5, 5], 3  # 3 in both
    rows = [row(params(**case, seed=seed), tokens, prompt) for seed in range(draws)]
    drawn = sample((EOS,), logits.repeat(draws, 1), rows)
    expected = reference_probabilities(logits, tokens, prompt, params(**case)).double() * draws
    observed = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY).double()
    assert observed[expected == 0].sum() == 0
    # Rare tokens together, as the test wants five expected draws in each bin.
    rare = (expected > 0) & (expected < 5)
    bins = [(observed[i], expected[i]) for i in torch.where(expected >= 5)[0]]
    if rare.any():
        bins.append((observed[rare].sum(), expected[rare].sum()))
    if len(bins) > 1:
        counts, wanted = torch.tensor(bins).double().T
        wanted *= counts.sum() / wanted.sum()
        assert stats.chisquare(counts, wanted).pvalue > 1e-4


SPECIAL: list[dict[str, Any]] = [
    {},
    {},
    {"min_p": 0.1},
    {"typical_p": 0.4},
    {"presence_penalty": 1.0, "frequency_penalty": -0.5},
    {"logit_bias": BIAS},
    {"stop_token_ids": (4, 11), "ignore_eos": True},
]


def test_rows_do_not_see_each_other() -> None:
    """Every row of a mixed batch draws what it draws alone."""
    generator = torch.Generator().manual_seed(8)
    grid = itertools.product((0.0, 0.7, 2.0), (0, 1, 7), (0.5, 1.0), (1.0, 1.7), (0, 50), SPECIAL)
    rows = [
        row(
            params(
                temperature=t,
                top_k=k,
                top_p=p,
                repetition_penalty=r,
                min_length=m,
                seed=index,
                **special,
            ),
            torch.randint(0, VOCABULARY, (1 + index % 9,), generator=generator).tolist(),
            index % (1 + index % 9) + 1,
        )
        for index, (t, k, p, r, m, special) in enumerate(grid)
    ]
    logits = torch.randn(len(rows), VOCABULARY, generator=generator) * 3
    together = sample((EOS, 7), logits.clone(), rows)
    alone = [
        sample((EOS, 7), logits[i : i + 1].clone(), rows[i : i + 1])[0] for i in range(len(rows))
    ]
    assert together == alone
    for (chosen, _, _), token in zip(rows, together, strict=True):
        if chosen.min_length:
            assert token not in chosen.stop_token_ids
            assert chosen.ignore_eos or token not in (EOS, 7)


def test_ties_at_top_k_stay() -> None:
    """As in transformers: with four equal tokens at the border of top-2, all four can come."""
    logits = torch.full((VOCABULARY,), -5.0)
    logits[[4, 9, 11, 30]] = 1.0
    rows = [row(params(top_k=2, seed=seed)) for seed in range(500)]
    assert set(sample((), logits.repeat(500, 1), rows)) == {4, 9, 11, 30}


def test_nothing_to_choose_from() -> None:
    """A row of NaN is told apart; its neighbours are served."""
    logits = torch.zeros(4, VOCABULARY)
    logits[0, 3] = torch.nan
    logits[1, 3] = torch.inf
    logits[2, 3] = 9
    logits[3] = -torch.inf
    rows = [row(params(temperature=0.1)) for _ in range(4)]
    assert sample((EOS,), logits, rows) == [-1, -1, 3, -1]


def test_uniform_is_splitmix64() -> None:
    """Against the published generator, written with Python's own integers."""

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    pairs = [(0, 0), (1, 0), (2**63 - 1, 2047), (123456789, 5), (-5, 9)]
    seeds, positions = (torch.tensor(column) for column in zip(*pairs, strict=True))
    expected = [
        (mix((mix(s % 2**64) + (p + 1) * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53
        for s, p in pairs
    ]
    assert uniform(seeds, positions).tolist() == expected


def test_uniform_is_uniform_over_seeds_and_over_positions() -> None:
    count = torch.arange(50_000)
    zeros = torch.zeros_like(count)
    for numbers in (uniform(count, zeros), uniform(zeros, count), uniform(count, count)):
        assert stats.kstest(numbers.numpy(), "uniform").pvalue > 1e-3
        assert numbers.min() >= 0
        assert numbers.max() < 1


def test_the_reference_s_defaults_are_what_is_assumed() -> None:
    """``generate`` would add processors if its defaults changed under us."""
    defaults = GenerationConfig()
    for name in ("typical_p", "min_p", "epsilon_cutoff", "no_repeat_ngram_size", "sequence_bias"):
        assert not getattr(defaults, name, None), name


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_what_is_dropped_is_what_the_reference_drops(spread: float) -> None:
    """Token by token on random logits, some of which were dropped before."""
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(200, 500, generator=generator) * spread
    logits[::2] = logits[::2].masked_fill(logits[::2] < 0, -torch.inf)
    ids = cast("torch.LongTensor", torch.zeros(200, 1, dtype=torch.int64))
    for share in (0.001, 0.05, 0.2, 0.5, 0.9, 0.99, 1.0):
        shares = torch.full((200,), share)
        wanted = MinPLogitsWarper(share)(ids, logits)
        assert torch.equal(drop_below_min_p(logits, shares), wanted)
        if share < 1:
            wanted = TypicalLogitsWarper(share)(ids, cast("torch.FloatTensor", logits))
            assert torch.equal(drop_untypical(logits, shares), wanted)


@pytest.mark.parametrize("count", [0, 1, 5, VOCABULARY + 3])
def test_logprobs(count: int) -> None:
    logits = torch.randn(30, VOCABULARY, generator=torch.Generator().manual_seed(2)) * 5
    tokens = torch.arange(30)
    wanted = logits.log_softmax(-1)
    found = Logprobs.of(logits.clone(), tokens, count)
    most = min(count, VOCABULARY)
    assert found.ids.shape == found.values.shape == (30, 1 + most)
    assert torch.equal(found.ids[:, 0], tokens)
    assert torch.equal(found.ids[:, 1:], wanted.topk(most).indices)
    torch.testing.assert_close(found.values, wanted.gather(1, found.ids), rtol=0, atol=1e-5)
    both = Logprobs.concatenate([found, found])
    assert torch.equal(both.values, found.values.repeat(2, 1))
