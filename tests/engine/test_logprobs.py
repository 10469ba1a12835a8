"""Log-probabilities of new tokens and of prompts equal transformers', in any company."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from gptj_predictor.common.row_limits import SCORED_ROWS
from gptj_predictor.engine.core import EngineCore
from gptj_predictor.engine.request import Event, Failure, FinishReason, TokenLogprobs
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.sampling.params import SamplingParams
from tests.support.engines import GREEDY, FaultyNetwork, load, make_config
from tests.support.reference import ReferenceModel, make_reference

#: Of a log-probability in fp32, beside transformers'.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    """One with a longer context."""
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "rotary_dim": 8, "vocab_size": 90}
    return make_reference(tmp_path_factory.mktemp("long"), seed=3, n_positions=1024, **shape)


class Run:
    """Sequences that run together until they end, and their events."""

    def __init__(self, network: Any, **sizes: Any) -> None:
        self.core = EngineCore(network, make_config(network, **sizes))
        self.events: dict[Sequence, list[Event]] = {}

    def add(self, prompt: list[int], params: SamplingParams) -> Sequence:
        self.core.check(prompt, params)
        sequence = Sequence(list(prompt), params)
        self.events[sequence] = []
        self.core.add(sequence)
        return sequence

    def step(self) -> None:
        for sequence, event in self.core.step():
            if not event.is_scheduled:
                self.events[sequence].append(event)
        self.core.check_invariants()

    def to_the_end(self) -> None:
        while self.core.has_work:
            self.step()
        assert self.core.stats().used_pages == 0


def check_events(reference: ReferenceModel, sequence: Sequence, events: list[Event]) -> None:
    """Every log-probability that is asked for is there once, and is transformers'."""
    params, start = sequence.params, sequence.num_prompt_tokens
    tokens = [event.token_id for event in events if event.token_id is not None]
    assert sequence.token_ids[start:] == tokens
    wanted = reference.logprobs([*sequence.token_ids])
    first, *rest = events
    assert all(event.prompt_logprobs is None for event in rest)
    assert (first.prompt_logprobs is None) == (params.prompt_logprobs is None)
    if params.prompt_logprobs is not None:
        assert first.prompt_logprobs is not None
        assert [one.token_id for one in first.prompt_logprobs] == sequence.token_ids[1:start]
        for one, row in zip(first.prompt_logprobs, wanted[: start - 1], strict=True):
            check_token(one, row, params.prompt_logprobs)
    for event, row in zip(
        (e for e in events if e.token_id is not None), wanted[start - 1 :], strict=True
    ):
        assert (event.logprobs is None) == (params.logprobs is None)
        if params.logprobs is not None:
            assert event.logprobs is not None
            assert event.logprobs.token_id == event.token_id
            check_token(event.logprobs, row, params.logprobs)


def check_token(one: TokenLogprobs, row: torch.Tensor, count: int) -> None:
    """Against a row of log-probabilities ``[vocabulary]``."""
    assert one.logprob == pytest.approx(float(row[one.token_id]), abs=TOLERANCE)
    assert len(one.top) == min(count, len(row))
    likeliest = row.topk(len(one.top)).values.tolist()
    assert [value for _, value in one.top] == pytest.approx(likeliest, abs=TOLERANCE)
    for token_id, value in one.top:
        assert value == pytest.approx(float(row[token_id]), abs=TOLERANCE)


def mixture(
    reference: ReferenceModel, count: int, seed: int
) -> list[tuple[list[int], SamplingParams]]:
    """Some ask for all, some for something, some for nothing; many begin alike."""
    draw = random.Random(seed)
    beginning = [draw.randrange(1, reference.vocabulary) for _ in range(40)]
    requests = []
    for number in range(count):
        prompt = beginning[: draw.randint(1, 40)]
        prompt += [draw.randrange(1, reference.vocabulary) for _ in range(draw.randint(0, 50))]
        params = replace(
            GREEDY,
            max_length=len(prompt) + draw.choice([0, 1, 12, 30]),
            temperature=draw.choice([0.0, 1.5]),
            top_k=draw.choice([0, 7]),
            repetition_penalty=draw.choice([1.0, 1.7]),
            logit_bias=draw.choice([(), ((3, 5.0), (9, -100.0))]),
            seed=number,
            logprobs=draw.choice([None, 0, 3, 20]),
            prompt_logprobs=draw.choice([None, 0, 5, 20]),
        )
        requests.append((prompt, params))
    return requests


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("budget", [1, 7, 300])
def test_they_are_the_reference_s(small: ReferenceModel, budget: int, overlap: bool) -> None:
    """Chunks of a token, of some and of whole prompts, among sequences that ask for nothing."""
    run = Run(
        load(small.folder),
        max_batch_size=7,
        max_prefill_tokens=budget,
        overlap=overlap,
    )
    for prompt, params in mixture(small, 30, seed=budget):
        run.add(prompt, params)
    run.to_the_end()
    for sequence, events in run.events.items():
        assert events[-1].finish_reason in (FinishReason.LENGTH, FinishReason.EOS)
        check_events(small, sequence, events)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_preemption_delivers_a_prompt_s_once(small: ReferenceModel, overlap: bool) -> None:
    """Those that lose their place before and after their first token, in a cache for few."""
    run = Run(
        load(small.folder),
        max_batch_size=6,
        max_prefill_tokens=20,
        kv_cache_bytes=110_000,
        overlap=overlap,
    )
    for prompt, params in mixture(small, 24, seed=5):
        length = min(100, len(prompt) + 40)
        run.add(prompt, replace(params, max_length=length, min_length=length, prompt_logprobs=2))
    run.to_the_end()
    assert run.core.stats().num_preemptions > 5
    for sequence, events in run.events.items():
        check_events(small, sequence, events)


def test_a_prompt_is_only_computed(small: ReferenceModel) -> None:
    """No token, LENGTH, and its pages are there for the next; up to the whole context."""
    run = Run(load(small.folder), max_prefill_tokens=50)
    only = replace(GREEDY, prompt_logprobs=1)
    prompts = [[5], [5, 6], [1 + i % 66 for i in range(128)]]
    for prompt in prompts:
        run.add(prompt, replace(only, max_length=len(prompt)))
    run.add([9], replace(GREEDY, max_length=1))  # without asking for anything
    run.to_the_end()
    for sequence, events in run.events.items():
        [event] = events
        assert event.finish_reason is FinishReason.LENGTH
        check_events(small, sequence, events)
    stats = run.core.stats()
    assert (stats.num_prompt_tokens, stats.num_generated_tokens) == (1 + 2 + 128 + 1, 0)
    assert stats.finished[FinishReason.LENGTH] == 4
    follow_up = run.add(prompts[2][:100], replace(GREEDY, max_length=101))
    run.to_the_end()
    assert follow_up.num_prefix_hit_tokens == 96
    with pytest.raises(ValueError, match="a prompt of 3 tokens with max_length 2"):
        run.core.check([1, 2, 3], replace(GREEDY, max_length=2))


def test_a_scored_prompt_is_not_taken_from_the_prefix_cache(small: ReferenceModel) -> None:
    run = Run(load(small.folder), max_prefill_tokens=10)
    prompt = [1 + i for i in range(30)]
    run.add(prompt, replace(GREEDY, max_length=31))
    scored = [run.add(prompt, replace(GREEDY, max_length=31, prompt_logprobs=0)) for _ in range(2)]
    plain = run.add(prompt, replace(GREEDY, max_length=31))
    run.to_the_end()
    assert plain.num_prefix_hit_tokens > 0
    for sequence in scored:
        assert sequence.num_prefix_hit_tokens == 0
        check_events(small, sequence, run.events[sequence])


def test_one_that_ends_early_has_no_prompt_logprobs(small: ReferenceModel) -> None:
    run = Run(load(small.folder), max_prefill_tokens=10)
    sequence = run.add([1 + i for i in range(30)], replace(GREEDY, prompt_logprobs=0))
    run.step()
    assert sequence.prompt_logprobs
    assert run.core.end(sequence, Event(finish_reason=FinishReason.DEADLINE))
    assert not run.core.has_work


def test_logits_that_are_no_numbers_end_a_scored_prompt(small: ReferenceModel) -> None:
    network = FaultyNetwork(load(small.folder))
    run = Run(network)

    def spoil(logits: torch.Tensor) -> None:
        logits[len(logits) // 2 :] = torch.nan

    network.spoil = spoil
    bad = run.add([1, 2, 3, 4], replace(GREEDY, max_length=4, prompt_logprobs=0))
    run.to_the_end()
    assert [event.failure for event in run.events[bad]] == [Failure.NOT_FINITE]
    network.spoil = None
    good = run.add([1, 2, 3, 4], replace(GREEDY, max_length=4, prompt_logprobs=0))
    run.to_the_end()
    check_events(small, good, run.events[good])


@pytest.mark.parametrize("chunk", [50, 4096])
def test_no_more_logits_than_a_slice(long: ReferenceModel, chunk: int) -> None:
    """A prompt's logits are never in memory together; only their likeliest stay."""
    network = FaultyNetwork(load(long.folder))
    rows: list[int] = []
    network.spoil = lambda logits: rows.append(len(logits))
    run = Run(network, max_prefill_tokens=chunk)
    prompt = [1 + i * 7 % (long.vocabulary - 1) for i in range(1024)]
    plain = run.add(prompt[:-1], replace(GREEDY, max_length=1023))
    run.to_the_end()
    assert sum(rows) == 0  # of those that ask for nothing, no logits are made
    scored = run.add(prompt, replace(GREEDY, max_length=1024, prompt_logprobs=4))
    run.to_the_end()
    assert max(rows) == min(chunk, SCORED_ROWS)
    assert sum(rows) == 1023
    check_events(long, scored, run.events[scored])
    assert run.events[plain][0].prompt_logprobs is None
