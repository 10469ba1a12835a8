"""gRPC calls on the road of HTTP requests: the same keys, gate, counts, spans and log lines.

gRPC is HTTP/2, so a call has a scope as ASGI has it. The middleware sees the call as a ``POST`` of
the method's path, and its answer as one with HTTP's status, which becomes gRPC's here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast
from urllib.parse import unquote

import grpc
import orjson
from google.protobuf.message import DecodeError
from grpc_interceptor.exceptions import Unimplemented
from kserve.errors import InvalidInput
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptj_predictor.engine.request import FinishReason
from gptj_predictor.server.errors import KNOWN, problem_of
from gptj_predictor.server.generation_call import EndedEarlyError
from gptj_predictor.server.http_requests import TIMEOUT_HEADER
from gptj_predictor.server.middleware import header, note_refusal, refusal_reason

Context = grpc.aio.ServicerContext[Any, Any]

#: gRPC's status for HTTP's; any other is INTERNAL.
STATUSES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

#: Seconds by which a client may see its deadline pass earlier than we do.
CLIENTS_LEAD_SECONDS = 0.1

#: Headers of an answer that a client gets as trailing metadata.
_TRAILERS = ("x-request-id", "retry-after")

#: In a scope: the :class:`_Call`.
_CALL = "gptj_predictor.grpc_call"


class GrpcCalls(grpc.aio.ServerInterceptor):
    """Takes every call through the middleware, but those whose answer is a stream."""

    def __init__(self, wrap: Callable[[ASGIApp], ASGIApp], receive_timeout_seconds: float) -> None:
        """Prepare.

        Args:
            wrap: Puts the middleware around an application.
            receive_timeout_seconds: In which the message of a call must arrive.
        """
        self._app = wrap(_answer)
        self._receive_timeout_seconds = receive_timeout_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Handle one call; see gRPC."""
        handler = await continuation(handler_call_details)
        if handler is not None and handler.unary_unary is None:
            return handler

        async def answer(messages: AsyncIterator[bytes], context: Context) -> bytes:
            call = _Call(handler, messages, context, self._receive_timeout_seconds)
            scope = _scope(handler_call_details, context) | {_CALL: call}
            await self._app(scope, _receive, call.send)
            return await call.end()

        # A handler of streamed requests is called before there is a message.
        return grpc.stream_unary_rpc_method_handler(cast("Any", answer))


class _Call:
    """A call with what has been answered."""

    def __init__(
        self,
        handler: Any,
        messages: AsyncIterator[bytes],
        context: Context,
        receive_timeout_seconds: float,
    ) -> None:
        self.is_gone = False  # nobody waits for the answer
        self._handler = handler
        self._messages = messages
        self._context = context
        self._receive_timeout_seconds = receive_timeout_seconds
        self._status: int | None = None
        self._headers: dict[str, str] = {}
        self._body = b""
        self._answer = b""

    @property
    def is_late(self) -> bool:
        """Whether the client's deadline has passed, by its own clock, which began before ours."""
        seconds = self._context.time_remaining()
        return seconds is not None and seconds < CLIENTS_LEAD_SECONDS

    async def handle(self, scope: Scope) -> None:
        """Read the message and have it answered.

        Raises:
            Exception: see :func:`gptj_predictor.server.errors.problem_of`.
        """
        if self._handler is None:
            raise Unimplemented(f"no such method: {scope['path'][:200]}")
        try:
            async with asyncio.timeout(self._receive_timeout_seconds):
                message = await anext(aiter(self._messages), None)
        except TimeoutError:
            seconds = self._receive_timeout_seconds
            raise InvalidInput(f"the message did not arrive in {seconds:g} s") from None
        if message is None:
            raise InvalidInput("the call has no message, or one that is too large")
        try:
            request = self._handler.request_deserializer(message)
        except DecodeError:
            raise InvalidInput("the message is not what the method takes") from None
        answer = await self._handler.unary_unary(request, scope)
        self._answer = self._handler.response_serializer(answer)

    async def send(self, message: Message) -> None:
        """Take a part of the answer; see ASGI."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = {
                key.decode("latin-1"): value.decode("latin-1")
                for key, value in message.get("headers", ())
            }
        else:
            self._body += message.get("body", b"")

    async def end(self) -> bytes:
        """The answer.

        Raises:
            Exception: it is an error, which gRPC sends, or there is nobody to have it.
        """
        if self.is_gone or self._status is None:
            raise asyncio.CancelledError
        trailers = tuple((key, self._headers[key]) for key in _TRAILERS if key in self._headers)
        if self._status == 200:
            self._context.set_trailing_metadata(trailers)
            return self._answer
        code = STATUSES.get(self._status, grpc.StatusCode.INTERNAL)
        await self._context.abort(code, orjson.loads(self._body)["error"], trailers)
        raise AssertionError  # abort does not return


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The innermost application: the method itself, and an answer to every error."""
    call: _Call = scope[_CALL]
    try:
        await call.handle(scope)
    except (asyncio.CancelledError, Exception) as error:
        if isinstance(error, asyncio.CancelledError):  # by its deadline, by its client, at the end
            call.is_gone = True
            if not call.is_late:
                raise ClientDisconnect from None
            error = EndedEarlyError(FinishReason.DEADLINE)
        problem = problem_of(error)
        if problem.refusal is not None:
            note_refusal(scope, problem.refusal)
        refusal_reason(scope, problem.text)
        headers = []
        if problem.retry_after is not None:
            headers.append((b"retry-after", str(problem.retry_after).encode()))
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        body = orjson.dumps({"error": problem.text})
        await send({"type": "http.response.body", "body": body})
        if not isinstance(error, KNOWN):
            raise  # RequestLog logs it
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _receive() -> Message:
    """Nothing comes this way: gRPC cancels the task of a call whose client has gone."""
    await asyncio.Event().wait()
    raise AssertionError


def _scope(details: grpc.HandlerCallDetails, context: Context) -> dict[str, Any]:
    """A call as ASGI would describe it."""
    headers = [
        (key.encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
        for key, value in details.invocation_metadata or ()
    ]
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "2",
        "method": "POST",
        "scheme": "http",
        "path": details.method,
        "query_string": b"",
        "headers": headers,
        "client": _client(context.peer()),
    }
    seconds = context.time_remaining()
    if seconds is not None:
        given = header(scope, TIMEOUT_HEADER, b"inf")
        headers.append((TIMEOUT_HEADER, _shorter(given, seconds)))
    return scope


def _shorter(given: bytes, seconds: float) -> bytes:
    """The shorter of a client's two limits; one that makes no sense is refused as over HTTP."""
    try:
        shorter = min(float(given), max(seconds, 1e-3))
    except ValueError:
        return given
    return str(shorter).encode()


def _client(peer: str) -> tuple[str, int] | None:
    """Address and port of ``ipv4:127.0.0.1:1234`` or ``ipv6:%5B::1%5D:1234``."""
    kind, _, place = unquote(peer).partition(":")
    host, _, port = place.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]"), int(port)
