"""Many random requests through a running engine: nothing is left behind."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import psutil
import pytest

from gptj_predictor.engine.engine import Handle
from gptj_predictor.engine.request import Event, FinishReason
from tests.support.engines import GREEDY, RunningEngine
from tests.support.reference import ReferenceModel


class Crowd:
    """Keeps a number of requests going; some are cancelled at a random token of theirs."""

    def __init__(self, engine: RunningEngine, vocabulary: int, at_once: int) -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._places = threading.Semaphore(at_once)
        self._draw = random.Random(17)
        self._beginnings = [self._tokens(40), self._tokens(25)]
        self.ends: dict[FinishReason, int] = dict.fromkeys(FinishReason, 0)
        self.tokens = 0

    def _tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(1, self._vocabulary) for _ in range(count)]

    def run(self, count: int) -> None:
        for _ in range(count):
            self._places.acquire()
            self._submit()
        # All places free again: all have ended.
        self.wait()

    def wait(self, places: int = 24) -> None:
        for _ in range(places):
            assert self._places.acquire(timeout=60)
        self._places.release(places)

    def _submit(self) -> None:
        draw = self._draw
        prompt = [*draw.choice([*self._beginnings, []]), *self._tokens(draw.randint(1, 20))]
        params = replace(
            GREEDY,
            max_length=min(128, len(prompt) + draw.randint(1, 60)),
            temperature=draw.choice([0.0, 1.5]),
            repetition_penalty=draw.choice([1.0, 1.3]),
            seed=draw.randrange(1000),
        )
        cancel_at = draw.choice([None, None, draw.randint(0, 30)])
        handles: list[Handle] = []
        seen = 0

        def sink(event: Event) -> None:
            nonlocal seen
            if event.token_id is not None:
                seen += 1
                self.tokens += 1
            if seen == cancel_at and handles:
                handles[0].end()
            if event.finish_reason is not None:
                self.ends[event.finish_reason] += 1
                self._places.release()

        handles.append(self._engine.engine.submit(prompt, params, sink))
        if cancel_at == 0:
            handles[0].end()


@pytest.mark.slow
def test_soak(small: ReferenceModel, large: bool) -> None:
    count = 10_000 if large else 600
    with RunningEngine(
        small.folder, kv_cache_bytes=300_000, max_batch_size=16, max_prefill_tokens=48
    ) as engine:
        crowd = Crowd(engine, small.vocabulary, at_once=24)
        crowd.run(count // 2)  # by then the allocators have what they need
        memory = psutil.Process().memory_info().rss
        crowd.run(count - count // 2)
        growth = psutil.Process().memory_info().rss - memory
        preemptions = engine.engine.stats().num_preemptions
        print(f"{count} requests, {crowd.tokens} tokens, {crowd.ends}, ", end="")
        print(f"{preemptions} preemptions, memory {growth / 2**20:+.1f} MiB")
        assert sum(crowd.ends.values()) == count
        assert crowd.ends[FinishReason.CANCELLED] > count // 20
        assert crowd.ends[FinishReason.ERROR] == 0
        assert preemptions > 0
        assert engine.pages_in_use == 0
        assert growth < 24 * 2**20
    engine.engine.check_invariants()
