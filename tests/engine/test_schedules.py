"""Whatever happens around a request, its output is the reference's.

Random schedules: requests arrive between steps, share prefixes, are cancelled; batch, prefill
budget, page size and cache size vary; steps overlap or not; decoding runs eagerly or from graphs
(as on a GPU: our Triton kernels, here interpreted, over static buffers).
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from gptj_predictor.engine.core import EngineCore
from gptj_predictor.engine.graphs import Capture
from gptj_predictor.engine.request import Event, FinishReason
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.sampling.params import SamplingParams
from tests.support.engines import GREEDY, RunningEngine, load, make_config
from tests.support.gpu_step import with_kernels
from tests.support.reference import ReferenceModel

pytestmark = pytest.mark.slow

Request = tuple[tuple[int, ...], SamplingParams]


EXTRAS: list[dict[str, Any]] = [
    {"frequency_penalty": 0.8, "presence_penalty": -0.4, "logprobs": 2},
    {"logit_bias": ((9, 4.0), (11, 3.0)), "prompt_logprobs": 3},
    {"min_p": 0.1, "prompt_logprobs": 0, "logprobs": 0},
    {"typical_p": 0.6, "stop_token_ids": (3, 30)},
    {"ignore_eos": True, "frequency_penalty": 1.5, "prompt_logprobs": 1},
]


@cache
def requests(reference: ReferenceModel) -> list[Request]:
    """Greedy and sampled ones, many with common beginnings."""
    draw = random.Random(11)

    def some(count: int) -> list[int]:
        return [draw.randrange(1, reference.vocabulary) for _ in range(count)]

    beginnings = [some(30), some(17)]
    beginnings.append(beginnings[0][:20] + some(15))
    made: list[Request] = []
    for number in range(36):
        prompt = [*draw.choice([*beginnings, []]), *some(draw.randint(1, 12))]
        max_length = len(prompt) + draw.randint(1, 40)
        params = replace(
            GREEDY,
            max_length=max_length,
            min_length=draw.choice([0, max_length, max_length - 5]),
            repetition_penalty=draw.choice([1.0, 1.0, 1.4]),
        )
        if number % 3 == 2:
            params = replace(params, temperature=1.2, top_k=draw.choice([0, 9]), seed=number)
        if number % 4 == 1:
            params = replace(params, **EXTRAS[number // 4 % len(EXTRAS)])
        made.append((tuple(prompt), params))
    return made


@cache
def expected(reference: ReferenceModel, index: int) -> list[int]:
    """transformers' tokens for a greedy request; for a sampled one what it gets alone."""
    prompt, params = requests(reference)[index]
    if params.greedy:
        return reference.greedy(list(prompt), params)
    with RunningEngine(reference.folder, enable_prefix_caching=False) as engine:
        return engine.submit(list(prompt), params).result()[0]


class Schedule:
    """An engine core whose steps the test takes."""

    def __init__(self, reference: ReferenceModel, *, graphs: bool, **sizes: Any) -> None:
        network = load(reference.folder)
        if graphs:
            network = with_kernels(network)
        capture: Capture | None = (lambda run: run) if graphs else None
        self.core = EngineCore(network, make_config(network, **sizes), capture)
        self.core.prepare()
        self.reference = reference
        self.running: dict[int, tuple[Sequence, list[Event]]] = {}

    def add(self, key: int, request: int) -> None:
        prompt, params = requests(self.reference)[request]
        self.core.check(prompt, params)
        sequence = Sequence(list(prompt), params)
        self.running[key] = sequence, []
        self.core.add(sequence)

    def cancel(self, key: int) -> None:
        sequence, events = self.running[key]
        if self.core.end(sequence, Event(finish_reason=FinishReason.CANCELLED)):
            events.append(Event(finish_reason=FinishReason.CANCELLED))

    def step(self) -> bool:
        """Whether there was anything to do."""
        if not self.core.has_work:
            return False
        news = self.core.step()
        tokens = [sequence for sequence, event_ in news if not event_.is_scheduled]
        assert len(set(tokens)) == len(tokens)
        events = dict(self.running.values())
        for sequence, event_ in news:
            events[sequence].append(event_)
        self.core.check_invariants()
        return True


def run_schedule(
    reference: ReferenceModel,
    arrivals: list[tuple[int, int]],
    cancels: dict[int, int],
    *,
    graphs: bool,
    **sizes: Any,
) -> Schedule:
    """``arrivals`` are (steps to wait, request); ``cancels`` a step for some of them."""
    schedule = Schedule(reference, graphs=graphs, **sizes)
    due = []
    at = 0
    for wait, request in arrivals:
        at += wait
        due.append((at, request))
    for now in range(100_000):
        for key, (when, request) in enumerate(due):
            if when == now:
                schedule.add(key, request)
        for key, when in cancels.items():
            if when == now and key in schedule.running:
                schedule.cancel(key)
        if not schedule.step() and now > at:
            break
    for key, (_, request) in enumerate(due):
        events = schedule.running[key][1]
        tokens = [event.token_id for event in events if event.token_id is not None]
        reason = events[-1].finish_reason
        assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        wanted = expected(reference, request)
        if reason is FinishReason.CANCELLED:
            assert key in cancels
            assert tokens == wanted[: len(tokens)]
        else:
            assert reason in (FinishReason.EOS, FinishReason.LENGTH, FinishReason.STOP_SEQUENCE)
            assert tokens == wanted
            check_logprobs(reference, *requests(reference)[request], events)
    assert schedule.core.stats().used_pages == 0
    return schedule


def check_logprobs(
    reference: ReferenceModel,
    prompt: tuple[int, ...],
    params: SamplingParams,
    events: list[Event],
) -> None:
    """What was asked for is there once and is transformers'; see test_logprobs.py for more."""
    if params.logprobs is None and params.prompt_logprobs is None:
        assert all(e.logprobs is None and e.prompt_logprobs is None for e in events)
        return
    tokens = [event.token_id for event in events if event.token_id is not None]
    wanted = reference.logprobs([*prompt, *tokens])
    events = [event for event in events if not event.is_scheduled]
    found = list(events[0].prompt_logprobs or ())
    found += [event.logprobs for event in events if event.logprobs is not None]
    asked = [*prompt[1:]] if params.prompt_logprobs is not None else []
    asked += tokens if params.logprobs is not None else []
    assert [one.token_id for one in found] == asked
    start = 0 if params.prompt_logprobs is not None else len(prompt) - 1
    for one, row in zip(found, wanted[start:], strict=False):
        assert one.logprob == pytest.approx(float(row[one.token_id]), abs=2e-5)


SIZES = {
    "max_batch_size": st.integers(1, 9),
    "max_prefill_tokens": st.sampled_from([1, 3, 16, 50, 500]),
    "page_size": st.sampled_from([1, 3, 4, 16]),
    "kv_cache_bytes": st.integers(90_000, 400_000),
    "enable_prefix_caching": st.booleans(),
    "overlap": st.booleans(),
}
ARRIVALS = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 1, 3, 20]), st.integers(0, 35)), min_size=1, max_size=14
)
CANCELS = st.dictionaries(st.integers(0, 13), st.integers(0, 60), max_size=3)
WHOLE_RUNS = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


def test_random_schedules(small: ReferenceModel, large: bool) -> None:
    @settings(WHOLE_RUNS, max_examples=400 if large else 40)
    @given(ARRIVALS, CANCELS, st.fixed_dictionaries(SIZES))
    def check(
        arrivals: list[tuple[int, int]], cancels: dict[int, int], sizes: dict[str, Any]
    ) -> None:
        schedule = run_schedule(small, arrivals, cancels, graphs=False, **sizes)
        event(f"preemptions: {schedule.core.stats().num_preemptions > 0}")

    check()


def test_random_schedules_from_graphs(small: ReferenceModel, large: bool) -> None:
    most = 5 if large else 3  # requests: Triton's interpreter takes long

    @settings(WHOLE_RUNS, max_examples=40 if large else 2)
    @given(ARRIVALS.filter(lambda a: len(a) <= most), CANCELS, st.fixed_dictionaries(SIZES))
    def check(
        arrivals: list[tuple[int, int]], cancels: dict[int, int], sizes: dict[str, Any]
    ) -> None:
        run_schedule(small, arrivals, cancels, graphs=True, **sizes)

    check()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_preemption_changes_nothing(
    small: ReferenceModel, large: bool, overlap: bool, graphs: bool
) -> None:
    """Six at once in a cache for little more than one; three where kernels are interpreted."""
    few = graphs and not large
    together = (3, 8, 1) if few else (2, 5, 0, 1, 3, 8)
    schedule = run_schedule(
        small,
        [(0, request) for request in together],
        {},
        graphs=graphs,
        max_batch_size=6,
        max_prefill_tokens=20,
        page_size=4,
        kv_cache_bytes=55_000 if few else 75_000,
        overlap=overlap,
    )
    assert schedule.core.stats().num_preemptions > 0
