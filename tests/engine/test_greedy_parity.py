"""Greedy output equals transformers' ``generate``, token for token, in any company."""

from __future__ import annotations

import pytest

from gptj_predictor.engine.request import FinishReason
from tests.support.engines import RunningEngine
from tests.support.reference import EOS, ReferenceModel
from tests.support.requests import mixed_requests


@pytest.mark.slow
def test_one_mixed_batch(small: ReferenceModel, large: bool) -> None:
    requests = mixed_requests(small, 400 if large else 60, seed=3)
    with RunningEngine(small.folder, max_batch_size=len(requests)) as engine:
        submitted = [engine.submit(prompt, params) for prompt, params in requests]
        results = [one.result() for one in submitted]
        assert engine.pages_in_use == 0
    for (prompt, params), (tokens, reason) in zip(requests, results, strict=True):
        assert tokens == small.greedy(prompt, params)
        assert reason == (FinishReason.EOS if tokens[-1] == EOS else FinishReason.LENGTH)
    # The mixture is one: some ended early, some ran to their limit.
    assert {reason for _, reason in results} == {FinishReason.EOS, FinishReason.LENGTH}


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
