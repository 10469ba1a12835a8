from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import cast

import pytest

from gptj_predictor.engine.request import EngineDeadError, Event, FinishReason, RequestRefusedError
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.sampling.params import SamplingParams
from tests.support.engines import GREEDY, FaultyNetwork, RunningEngine, load
from tests.support.reference import ReferenceModel

SAMPLED = SamplingParams(
    min_length=100,
    max_length=100,
    temperature=1.3,
    top_k=30,
    top_p=0.95,
    repetition_penalty=1.1,
    seed=42,
)
LONG = replace(GREEDY, min_length=128, max_length=128)


@pytest.mark.slow
def test_seeded_text_is_the_same_alone_and_in_a_crowd(engine: RunningEngine) -> None:
    prompt = [5, 9, 11]
    alone = engine.submit(prompt, SAMPLED).result()[0]
    assert len(alone) == 97
    crowd = [engine.submit([n + 1, 3], replace(SAMPLED, seed=n, top_k=n)) for n in range(20)]
    again = engine.submit(prompt, SAMPLED)
    crowd += [engine.submit([7] * (n + 1), replace(GREEDY, max_length=99)) for n in range(20)]
    assert again.result()[0] == alone
    others = [one.result()[0] for one in crowd]
    assert len({tuple(tokens) for tokens in others[:20]}) == 20
    assert engine.submit(prompt, replace(SAMPLED, seed=43)).result()[0] != alone


def test_events_come_one_by_one_and_the_reason_last(engine: RunningEngine) -> None:
    submitted = engine.submit([5], replace(GREEDY, min_length=8, max_length=8))
    assert submitted.events.get(timeout=10) == Event(is_scheduled=True)
    events = [submitted.events.get(timeout=10) for _ in range(7)]
    assert all(event.token_id is not None for event in events)
    assert [event.finish_reason for event in events] == [None] * 6 + [FinishReason.LENGTH]


def test_cancel_frees_the_pages_and_the_others_go_on(
    engine: RunningEngine, small: ReferenceModel
) -> None:
    doomed = engine.submit([5], LONG)
    kept = engine.submit([6], LONG)
    for _ in range(2):  # it is scheduled, and has a token
        doomed.events.get(timeout=10)
    doomed.handle.end()
    doomed.handle.end()
    tokens, reason = doomed.result()
    assert reason is FinishReason.CANCELLED
    assert len(tokens) < 127
    assert kept.result() == (small.greedy([6], LONG), FinishReason.LENGTH)
    assert engine.pages_in_use == 0
    doomed.handle.end()  # after the end: nothing happens
    assert engine.submit([6], LONG).result()[1] is FinishReason.LENGTH


def test_cancel_while_waiting(small: ReferenceModel) -> None:
    with RunningEngine(small.folder, max_batch_size=1) as engine:
        running = engine.submit([5], LONG)
        waiting = [engine.submit([6], LONG) for _ in range(3)]
        waiting[1].handle.end()
        assert waiting[1].result() == ([], FinishReason.CANCELLED)
        for one in (running, waiting[0], waiting[2]):
            assert one.result()[1] is FinishReason.LENGTH
        assert engine.pages_in_use == 0


@pytest.mark.slow
def test_the_oldest_is_never_put_off(small: ReferenceModel) -> None:
    """Two that do not fit together: the younger one waits, is recomputed, and is none the worse."""
    with RunningEngine(small.folder, kv_cache_bytes=150_000) as engine:
        assert engine.engine.info().kv_cache_tokens < 2 * 128
        order: list[str] = []
        tokens: dict[str, list[int]] = {"first": [], "second": []}
        ended = threading.Event()

        def submit(name: str, prompt: list[int]) -> None:
            def sink(event: Event) -> None:
                if event.is_scheduled:
                    return
                assert event.token_id is not None
                tokens[name].append(event.token_id)
                if event.finish_reason is not None:
                    order.append(name)
                    if len(order) == 2:
                        ended.set()

            engine.engine.submit(prompt, LONG, sink)

        submit("first", [5])
        submit("second", [6])
        assert ended.wait(30)
        assert order == ["first", "second"]
        assert engine.engine.stats().num_preemptions > 0
        assert tokens == {"first": small.greedy([5], LONG), "second": small.greedy([6], LONG)}
        assert engine.pages_in_use == 0


def test_what_can_never_fit_is_refused(small: ReferenceModel) -> None:
    with RunningEngine(small.folder, kv_cache_bytes=50_000) as engine:
        fits = engine.engine.info().kv_cache_tokens
        assert fits < 128
        with pytest.raises(RequestRefusedError, match=f"at most {fits} do"):
            engine.submit([5], LONG)
        params = replace(LONG, min_length=fits, max_length=fits)
        assert len(engine.submit([5], params).result()[0]) == fits - 1


def test_cache_without_room_for_a_page(small: ReferenceModel) -> None:
    with pytest.raises(ValueError, match="too small; the minimum is"):
        RunningEngine(small.folder, kv_cache_bytes=1000)


@pytest.mark.parametrize("prompt", [[], [1] * 41, [1] * 129])
def test_prompts_that_make_no_sense(engine: RunningEngine, prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="tokens with max_length 40"):
        engine.submit(prompt, GREEDY)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("refused", [1, 60, 127])
def test_a_sink_that_raises_ends_its_own_sequence_alone(
    small: ReferenceModel, caplog: pytest.LogCaptureFixture, refused: int, overlap: bool
) -> None:
    """The client's event loop is gone: at the first token, half way, at the last token."""
    loop = asyncio.new_event_loop()
    events: list[Event] = []

    def sink(event: Event) -> None:
        if event.is_scheduled:
            return
        events.append(event)
        if len(events) == refused:
            loop.close()
        loop.call_soon_threadsafe(lambda: None)

    with RunningEngine(small.folder, overlap=overlap) as engine:
        older = engine.submit([6], LONG)
        engine.engine.submit([5], LONG, sink)
        younger = engine.submit([7], LONG)
        assert older.result() == (small.greedy([6], LONG), FinishReason.LENGTH)
        assert younger.result() == (small.greedy([7], LONG), FinishReason.LENGTH)
        assert engine.pages_in_use == 0
        assert engine.engine.alive
    tokens = [event.token_id for event in events if event.token_id is not None]
    assert tokens == small.greedy([5], LONG)[:refused]
    ends = [event.finish_reason for event in events if event.finish_reason is not None]
    assert ends == [FinishReason.LENGTH if refused == 127 else FinishReason.ERROR]
    (record,) = caplog.records
    assert record.getMessage() == "sequence 2 ends: its sink raised"
    assert "Event loop is closed" in caplog.text


def test_nobody_hangs_when_the_engine_dies(
    small: ReferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = FaultyNetwork(load(small.folder))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with RunningEngine(cast("GPTJNetwork", network)) as engine:

        def refuse_the_end(event: Event) -> None:
            if event.finish_reason is not None:
                raise RuntimeError("nobody is there")

        engine.engine.submit([6], LONG, refuse_the_end)
        waiting = engine.submit([5], LONG)
        waiting.events.get(timeout=10)
        network.fault = RuntimeError("CUDA error: an illegal memory access\nand more lines")
        assert waiting.result()[1] is FinishReason.ERROR
        assert not engine.engine.alive
        engine.engine.stop()
        assert engine.engine.cause_of_death == "CUDA error: an illegal memory access"
        with pytest.raises(EngineDeadError):
            engine.submit([5], LONG)


def test_stop_ends_what_runs(small: ReferenceModel) -> None:
    engine = RunningEngine(small.folder)
    with engine:
        submitted = engine.submit([5], LONG)
        submitted.events.get(timeout=10)
    assert submitted.result(1)[1] in (FinishReason.CANCELLED, FinishReason.LENGTH)
    with pytest.raises(EngineDeadError):
        engine.submit([5], LONG)
    engine.engine.stop()
    with engine:
        assert engine.submit([6], LONG).result()[1] is FinishReason.LENGTH


def test_not_started(small: ReferenceModel) -> None:
    engine = RunningEngine(small.folder).engine
    with pytest.raises(EngineDeadError):
        engine.submit([5], LONG, lambda _: None)
    engine.stop()
