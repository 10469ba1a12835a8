"""What the routes of all protocols do with a request for texts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastapi import Request
from fastapi.responses import Response
from kserve.protocol.dataplane import DataPlane
from starlette.datastructures import Headers
from starlette.types import Scope

from gptj_predictor.server.active_requests import ActiveRequest
from gptj_predictor.server.errors import Problem
from gptj_predictor.server.event_stream import EventStream, error_event
from gptj_predictor.server.generation import Generation
from gptj_predictor.server.generation_call import GeneratedText, GenerationCall, GenerationRequest
from gptj_predictor.server.http_requests import active_request
from gptj_predictor.server.middleware import note_generation, note_texts
from gptj_predictor.server.predictor import GPTJPredictor

Asked = TypeVar("Asked", bound=GenerationRequest)


@dataclass(frozen=True)
class WireFormat(Generic[Asked]):
    """A protocol's own part of a request for texts.

    Attributes:
        parse: From a body to what is asked for; raises ``InvalidInput``.
        answer: From that and the texts, a list for each prompt, to the answer.
        events: To a streamed answer's events, the last one included; ``None`` if none is streamed.
        error_event: To the last event of a stream that fails.
    """

    parse: Callable[[bytes], Asked]
    answer: Callable[[Asked, list[list[GeneratedText]]], Response]
    events: Callable[[Asked, Generation], AsyncIterator[bytes]] | None = None
    error_event: Callable[[Problem], bytes] = error_event


async def generate(
    request: Request, dataplane: DataPlane, predictor: GPTJPredictor, wire: WireFormat[Asked]
) -> Response:
    """Answer a request for texts, at once or in a stream.

    Raises:
        Exception: see :func:`gptj_predictor.server.errors.problem_of`.
    """
    predictor.check_ready()
    body = await request.body()
    async with AsyncExitStack() as work:
        active = await work.enter_async_context(active_request(request, predictor.requests))
        asked = wire.parse(body)
        generated = await start(request.scope, asked, active, dataplane, predictor)
        if isinstance(generated, Generation):
            assert wire.events is not None
            work.callback(generated.cancel)
            events = _noted(request.scope, asked, generated, wire.events(asked, generated))
            return EventStream(events, wire.error_event, work.pop_all())
    note(request.scope, asked, generated)
    return wire.answer(asked, generated)


async def start(
    scope: Scope,
    asked: GenerationRequest,
    active: ActiveRequest,
    dataplane: DataPlane,
    predictor: GPTJPredictor,
) -> list[list[GeneratedText]] | Generation:
    """Generate what is asked for: texts, or what they are streamed from.

    Raises:
        Exception: see :func:`gptj_predictor.server.errors.problem_of`.
    """
    note_texts(scope, asked.prompts)
    call = GenerationCall(asked, active)
    note_generation(scope, call)
    generated, _ = await dataplane.infer(predictor.name, call, dict(Headers(scope=scope)))
    return generated


def note(scope: Scope, asked: GenerationRequest, texts: list[list[GeneratedText]]) -> None:
    """Leave the texts for the log."""
    note_texts(scope, asked.prompts, [[one.text for one in sequences] for sequences in texts])


async def _noted(
    scope: Scope, asked: GenerationRequest, generation: Generation, events: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    async for one in events:
        yield one
    note(scope, asked, await generation.texts())
