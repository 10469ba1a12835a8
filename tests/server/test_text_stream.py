"""From the engine's events to pieces of text, without an engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.engine.engine import Handle
from gptj_predictor.engine.request import Event, Failure, FinishReason, TokenLogprobs
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.server.active_requests import ActiveRequest
from gptj_predictor.server.admission import Admission
from gptj_predictor.server.generation import Generation
from gptj_predictor.server.generation_call import (
    GenerationCall,
    GenerationRequest,
    OutOfMemoryError,
    Piece,
    TokenizedPrompt,
)
from gptj_predictor.server.text_stream import EventRelay, TextStream
from gptj_predictor.settings import GenerationParameters
from gptj_predictor.tokenizer import Detokenizer, Tokenizer

TOKENIZER = Tokenizer(DEMO_SNAPSHOT)
TEXT = "The secret to a happy life is to learn something new."
PARAMS = SamplingParams(0, 99, 1.0, 0, 1.0, 1.0, 0)


class Reading:
    """A generation of some sequences whose events the test makes."""

    def __init__(self, count: int, stop: tuple[str, ...] = ()) -> None:
        active = ActiveRequest("me", Admission(9, 999).enter("me", 9), 9)
        request = GenerationRequest(("a",), GenerationParameters(), stream=True)
        call = GenerationCall(request, active)
        prompt = TokenizedPrompt("a", [1], (PARAMS,) * count)
        self.active = active
        self.generation = Generation([prompt], call)
        self.relay = EventRelay(asyncio.get_running_loop())
        self.ended: list[FinishReason] = []
        self.streams = [self._add(number, stop) for number in range(count)]

    def _add(self, number: int, stop: tuple[str, ...]) -> TextStream:
        stream = TextStream(
            (0, number),
            Detokenizer(TOKENIZER, stop),
            self.active,
            self.relay,
            prompt=TokenizedPrompt("a", [1], (PARAMS,)),
            seed=number,
            reads_along=True,
            on_news=self.generation.note,
        )
        stream.handle = Handle(Sequence([1], PARAMS), self.ended.append)
        self.generation.add(stream)
        return stream

    async def pieces(self, idle_seconds: float = 9) -> list[list[Piece]]:
        return [pieces async for pieces in self.generation.pieces(idle_seconds)]


def in_loop(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(cast("Any", test()))


def tokens(text: str, reason: FinishReason = FinishReason.LENGTH) -> list[Event]:
    *first, last = TOKENIZER.encode(text)
    return [*(Event(token) for token in first), Event(last, reason)]


def scored(events: list[Event]) -> list[Event]:
    """The same with log-probabilities."""
    return [
        replace(event, logprobs=TokenLogprobs(event.token_id, -1.0, ()))
        for event in events
        if event.token_id is not None
    ]


def put_all(stream: TextStream, events: list[Event]) -> None:
    """As the engine does it: in a thread."""

    def put() -> None:
        for event in events:
            stream.put(event)

    thread = threading.Thread(target=put)
    thread.start()
    thread.join()


def test_what_a_slow_reader_has_not_read_is_one_piece() -> None:
    async def run() -> None:
        reading = Reading(2)
        for stream in reading.streams:
            put_all(stream, tokens(TEXT))
        await asyncio.sleep(0)
        [pieces] = await reading.pieces()
        assert [(one.sequence, one.text) for one in pieces] == [(0, TEXT), (1, TEXT)]
        assert all(one.end is not None and one.end.text == TEXT for one in pieces)

    in_loop(run)


def test_a_reader_in_time_has_every_token() -> None:
    async def run() -> None:
        reading = Reading(1)
        reader = asyncio.create_task(reading.pieces())
        for event in tokens(TEXT):
            put_all(reading.streams[0], [event])
            for _ in range(4):
                await asyncio.sleep(0)
        pieces = [one for [one] in await reader]
        assert [one.text for one in pieces] == [
            TOKENIZER.token_bytes(token).decode() for token in TOKENIZER.encode(TEXT)
        ]
        assert [one.end is not None for one in pieces] == [False] * (len(pieces) - 1) + [True]

    in_loop(run)


def test_a_stop_string_ends_the_sequence() -> None:
    async def run() -> None:
        reading = Reading(1, stop=("happy",))
        put_all(reading.streams[0], tokens(TEXT))
        await asyncio.sleep(0)
        [[piece]] = await reading.pieces()
        assert piece.text == "The secret to a "
        assert piece.end is not None
        assert piece.end.finish_reason is FinishReason.STOP_SEQUENCE
        assert reading.ended == [FinishReason.STOP_SEQUENCE]

    in_loop(run)


def test_tokens_with_log_probabilities() -> None:
    """Each with its place in the text; with its text, or with the last piece."""

    async def run() -> None:
        text = "Eh, caf\u00e9 \u2014 \U0001f984!"
        reading = Reading(1)
        reader = asyncio.create_task(reading.pieces())
        for event in scored(tokens(text)):
            put_all(reading.streams[0], [event])
            for _ in range(4):
                await asyncio.sleep(0)
        pieces = [one for [one] in await reader]
        assert len(pieces) > 5
        end = pieces[-1].end
        assert end is not None
        assert end.text == text
        assert tuple(token for piece in pieces for token in piece.tokens) == end.tokens
        ids = [token.logprobs.token_id for token in end.tokens]
        assert ids == TOKENIZER.encode(text)
        data = text.encode()
        for number, token in enumerate(end.tokens):
            before = b"".join(map(TOKENIZER.token_bytes, ids[:number]))
            assert data.startswith(before)
            assert token.start == len(before.decode(errors="ignore"))
        seen = ""
        for piece in pieces[:-1]:
            seen += piece.text
            assert all(token.start < len(seen) for token in piece.tokens)

    in_loop(run)


def test_tokens_of_what_a_stop_string_cut_away() -> None:
    async def run() -> None:
        reading = Reading(1, stop=("appy",))
        put_all(reading.streams[0], scored(tokens(TEXT)))
        await asyncio.sleep(0)
        [[piece]] = await reading.pieces()
        assert piece.text == "The secret to a h"
        ids = [token.logprobs.token_id for token in piece.tokens]
        assert TEXT.startswith("".join(TOKENIZER.token_bytes(one).decode() for one in ids))
        assert piece.tokens[-1].start < len(piece.text)
        assert piece.end is not None
        assert piece.end.tokens == piece.tokens

    in_loop(run)


def test_a_stop_token_is_not_in_the_text() -> None:
    async def run() -> None:
        reading = Reading(1)
        put_all(reading.streams[0], scored(tokens(TEXT, FinishReason.STOP_SEQUENCE)))
        await asyncio.sleep(0)
        [[piece]] = await reading.pieces()
        assert piece.text == TEXT[:-1]
        assert len(piece.tokens) == len(TOKENIZER.encode(TEXT))
        assert piece.end is not None
        assert piece.end.num_generated_tokens == len(piece.tokens)

    in_loop(run)


def test_nothing_comes() -> None:
    async def run() -> None:
        reading = Reading(1)
        pieces = reading.generation.pieces(0.01)
        assert await anext(pieces) == []
        assert await anext(pieces) == []
        put_all(reading.streams[0], tokens("a"))
        assert [one.text for one in await anext(pieces)] == ["a"]

    in_loop(run)


def test_one_fails() -> None:
    """Its pieces end, and the error is the texts'."""

    async def run() -> None:
        reading = Reading(2)
        error = Event(
            finish_reason=FinishReason.ERROR, failure=Failure.OUT_OF_MEMORY, error="no room"
        )
        put_all(reading.streams[0], [*tokens(TEXT)[:3], error])
        await asyncio.sleep(0)
        assert await reading.pieces() == []
        with pytest.raises(OutOfMemoryError):
            await reading.generation.texts()
        reading.generation.cancel()
        assert reading.ended == [FinishReason.CANCELLED]

    in_loop(run)


def test_one_wake_up_for_all_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        loop, calls = asyncio.get_running_loop(), list[Callable[..., object]]()
        monkeypatch.setattr(loop, "call_soon_threadsafe", calls.append)
        reading = Reading(5)
        for stream in reading.streams:
            put_all(stream, tokens(TEXT))
        [deliver] = calls
        deliver()
        assert all(stream.has_ended for stream in reading.streams)

    in_loop(run)
