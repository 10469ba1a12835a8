"""Spans: one for each request, with queue, prefill and decode of its sequences below it.

Names and attributes are OpenTelemetry's, of its stable HTTP conventions and of its conventions for
generative AI; what these do not know begins with ``gptj.``. Prompts, texts and the reasons of
errors, which may repeat a prompt, are in no span.

fastapi and starlette have spans of their own. fastapi's begin behind the gate, so a refused request
would have none; starlette's are experimental; neither knows a sequence.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import nlargest

from opentelemetry import propagate
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gptj_predictor.engine.request import Timeline
from gptj_predictor.server.generation_call import GenerationCall
from gptj_predictor.server.middleware import (
    BROKEN,
    CLIENT_GONE,
    QUIET_PATHS,
    generation_of,
    refusal_of,
    status_of,
)
from gptj_predictor.server.protocol import is_for

#: Probes and scrapes come every few seconds and have no span.
UNTRACED_PATHS = re.compile(rf"{QUIET_PATHS.pattern}|/v2/models/[^/]+/ready")

#: Of a request's sequences, these many have spans of their own: those that took longest, as the
#: request ended with them. So a request has 25 spans at most.
MAX_TRACED_SEQUENCES = 8

OPERATION = "text_completion"
PROVIDER = "gptj-predictor"

#: HTTP's methods; a caller can make up others.
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")

Attributes = dict[str, AttributeValue]


@dataclass(frozen=True)
class Phase:
    """A part of a sequence's life; times in seconds of ``time.monotonic``."""

    name: str
    start: float
    end: float
    attributes: Attributes


class TraceRequests:
    """Gives every request a span that belongs to its caller's trace, if it has one."""

    def __init__(self, app: ASGIApp, tracer: Tracer, model_name: str) -> None:
        """Wrap an application that serves a model under a name."""
        self._app = app
        self._tracer = tracer
        self._model_name = model_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] != "http" or UNTRACED_PATHS.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        clock = _Clock()
        span = self._begin(scope, clock.nanoseconds(time.monotonic()))
        if not span.is_recording():
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._end(span, scope, clock)

    def _begin(self, scope: Scope, start: int) -> Span:
        headers = Headers(scope=scope)
        attributes: Attributes = {
            "http.request.method": _method(scope, "_OTHER"),
            "url.path": scope["path"][:200],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "gptj.request_id": headers["x-request-id"],
        }
        name = _method(scope, "HTTP")
        if is_for(scope, self._model_name):
            name = f"{OPERATION} {self._model_name}"
            attributes |= {
                "gen_ai.operation.name": OPERATION,
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": self._model_name,
            }
        carrier = {key: headers.getlist(key) for key in headers.keys()}  # noqa: SIM118 - repeats
        return self._tracer.start_span(
            name,
            context=propagate.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=start,
        )

    def _end(self, span: Span, scope: Scope, clock: _Clock) -> None:
        status = status_of(scope)
        route = getattr(scope.get("route"), "path_format", None)
        if route is not None:
            span.set_attribute("http.route", route)
            if not is_for(scope, self._model_name):
                span.update_name(f"{_method(scope, 'HTTP')} {route}")
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if status is None or status >= 400 or refusal_of(scope) is not None:
            # Without an answer there was nobody to have it.
            known = CLIENT_GONE if status is None else str(status)
            span.set_attribute("error.type", refusal_of(scope) or known)
        if status is None or status >= 500 or refusal_of(scope) == BROKEN:
            span.set_status(StatusCode.ERROR)
        call: GenerationCall | None = generation_of(scope)
        timelines = [] if call is None else call.timelines
        end = time.monotonic()  # a sequence that was just ended may have had a token until now
        if call is not None:
            self._add_generation(span, call, timelines, end, clock)
        span.end(clock.nanoseconds(end))

    def _add_generation(
        self,
        span: Span,
        call: GenerationCall,
        timelines: list[Timeline],
        end: float,
        clock: _Clock,
    ) -> None:
        span.set_attributes(_request_attributes(call) | _response_attributes(call, timelines))
        context = set_span_in_context(span)
        for number in _longest(timelines, end):
            for phase in _phases(call, number, timelines[number], end):
                child = self._tracer.start_span(
                    phase.name,
                    context=context,
                    attributes=phase.attributes,
                    start_time=clock.nanoseconds(phase.start),
                )
                child.end(clock.nanoseconds(phase.end))


def _method(scope: Scope, otherwise: str) -> str:
    """The method if it is one of HTTP's."""
    return scope["method"] if scope["method"] in METHODS else otherwise


class _Clock:
    """From ``time.monotonic`` to the time of day, by one difference for all spans of a request."""

    def __init__(self) -> None:
        self._difference = time.time_ns() - time.monotonic_ns()

    def nanoseconds(self, seconds: float) -> int:
        """Nanoseconds since 1970."""
        return round(seconds * 1e9) + self._difference


def _request_attributes(call: GenerationCall) -> Attributes:
    """What was asked for, defaults included where the convention does not say otherwise."""
    parameters = call.request.parameters
    attributes: Attributes = {
        "gen_ai.request.temperature": parameters.temperature if parameters.do_sample else 0.0,
        "gen_ai.request.top_k": float(parameters.top_k),
        "gen_ai.request.top_p": parameters.top_p,
        "gptj.request.max_length": parameters.max_length,
        "gptj.request.instances": len(call.request.prompts),
    }
    if parameters.max_new_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = parameters.max_new_tokens
    if parameters.seed is not None:
        attributes["gen_ai.request.seed"] = parameters.seed
    if parameters.num_return_sequences != 1:
        attributes["gen_ai.request.choice.count"] = parameters.num_return_sequences
    if parameters.stop_strings:
        attributes["gen_ai.request.stop_sequences"] = list(parameters.stop_strings)
    return attributes


def _response_attributes(call: GenerationCall, timelines: list[Timeline]) -> Attributes:
    """What came of it. A prompt counts once, however many sequences it has."""
    firsts = timelines[:: call.request.parameters.num_return_sequences]
    attributes: Attributes = {
        "gen_ai.usage.input_tokens": sum(one.num_prompt_tokens for one in firsts),
        "gen_ai.usage.cache_read.input_tokens": sum(one.num_cached_tokens for one in firsts),
    }
    if call.texts:
        generated = sum(text.num_generated_tokens for text in call.texts)
        reasons = [text.finish_reason.value for text in call.texts]
        attributes["gen_ai.usage.output_tokens"] = generated
        attributes["gen_ai.response.finish_reasons"] = reasons
    return attributes


def _longest(timelines: list[Timeline], end: float) -> list[int]:
    """The numbers of the sequences that ended last, in order."""
    numbers = range(len(timelines))
    return sorted(
        nlargest(MAX_TRACED_SEQUENCES, numbers, key=lambda i: timelines[i].last_token or end)
    )


def _phases(call: GenerationCall, number: int, timeline: Timeline, end: float) -> Iterator[Phase]:
    """How far one sequence has come; what it was in last ends, at the latest, with the request."""
    instance, sequence = divmod(number, call.request.parameters.num_return_sequences)
    names: Attributes = {"gptj.instance": instance, "gptj.sequence": sequence}
    yield Phase("queue", timeline.submitted, timeline.scheduled or end, names)
    if timeline.scheduled is not None:
        tokens: Attributes = {
            "gptj.prompt_tokens": timeline.num_prompt_tokens,
            "gptj.cached_tokens": timeline.num_cached_tokens,
        }
        yield Phase("prefill", timeline.scheduled, timeline.first_token or end, names | tokens)
    if timeline.first_token is not None:
        tokens = {"gptj.generated_tokens": timeline.num_generated_tokens}
        if call.texts:
            tokens["gptj.finish_reason"] = call.texts[number].finish_reason.value
        yield Phase("decode", timeline.first_token, timeline.last_token or end, names | tokens)
