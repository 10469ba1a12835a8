"""Greedy output equals transformers' ``generate``, token for token, in any company."""

from __future__ import annotations

import random

import pytest

from gptj_predictor.engine.request import FinishReason
from gptj_predictor.sampling.params import SamplingParams
from tests.support.engines import RunningEngine
from tests.support.reference import EOS, ReferenceModel


def mixed_requests(
    reference: ReferenceModel, count: int, seed: int
) -> list[tuple[list[int], SamplingParams]]:
    draw = random.Random(seed)
    context = int(reference.model.config.n_positions)
    requests = []
    for _ in range(count):
        prompt = [
            draw.randrange(1, reference.vocabulary) for _ in range(draw.randint(1, context // 2))
        ]
        longest = draw.randint(len(prompt) + 1, context)
        requests.append(
            (
                prompt,
                SamplingParams(
                    min_length=draw.choice([0, 0, draw.randint(1, longest)]),
                    max_length=longest,
                    temperature=0.0,
                    top_k=draw.choice([0, 5]),
                    top_p=draw.choice([1.0, 0.5]),
                    repetition_penalty=draw.choice([1.0, 1.0, 1.3, 0.8, 2.0]),
                    seed=draw.randrange(100),
                ),
            )
        )
    return requests


@pytest.mark.slow
def test_one_mixed_batch(small: ReferenceModel, large: bool) -> None:
    requests = mixed_requests(small, 400 if large else 60, seed=3)
    with RunningEngine(small.folder, max_batch_size=len(requests)) as engine:
        submitted = [engine.submit(prompt, params) for prompt, params in requests]
        results = [one.result() for one in submitted]
        assert engine.pages_in_use == 0
    for (prompt, params), (tokens, reason) in zip(requests, results, strict=True):
        assert tokens == small.greedy(prompt, params)
        assert reason == (FinishReason.STOP if tokens[-1] == EOS else FinishReason.LENGTH)
    # The mixture is one: some ended early, some ran to their limit.
    assert {reason for _, reason in results} == {FinishReason.STOP, FinishReason.LENGTH}


@pytest.mark.slow
def test_joining_and_leaving_a_small_batch(small: ReferenceModel) -> None:
    """More requests than places, pages and prefill tokens: they queue, and nothing changes."""
    requests = mixed_requests(small, 30, seed=5)
    with RunningEngine(
        small.folder, max_batch_size=5, max_prefill_tokens=70, kv_cache_bytes=200_000
    ) as engine:
        assert engine.engine.info().kv_cache_tokens < 3 * 128
        submitted = [engine.submit(prompt, params) for prompt, params in requests]
        results = [one.result()[0] for one in submitted]
        assert engine.pages_in_use == 0
    assert results == [small.greedy(prompt, params) for prompt, params in requests]


def test_every_shape(reference: ReferenceModel) -> None:
    requests = mixed_requests(reference, 6, seed=9)
    with RunningEngine(reference.folder, page_size=16) as engine:
        submitted = [engine.submit(prompt, params) for prompt, params in requests]
        results = [one.result()[0] for one in submitted]
    assert results == [reference.greedy(prompt, params) for prompt, params in requests]
