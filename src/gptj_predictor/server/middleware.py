"""What wraps every HTTP request: its id, its line in the log, its limits."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptj_predictor.server.callers import CALLER, caller_of
from gptj_predictor.server.error_body import error_body
from gptj_predictor.server.protocol import GRPC_PROBES

logger = logging.getLogger(__name__)

#: A caller's request id is repeated to it and to the log, so it must be harmless in both.
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

#: Probes and scrapes come every few seconds; they are logged only on a failure.
QUIET_PATHS = re.compile(
    rf"/|/metrics|/health|/v2/health/(live|ready)|/v1/models/[^/:]+|{GRPC_PROBES.pattern}"
)

#: Seconds that a client is told to wait where nothing better is known.
RETRY_AFTER_SECONDS = 5

_REASON = "gptj_predictor.reason"
_REFUSAL = "gptj_predictor.refusal"
_STATUS = "gptj_predictor.status"
_GENERATION = "gptj_predictor.generation"
_TEXTS = "gptj_predictor.texts"

#: The refusal of a client that has gone before its answer.
CLIENT_GONE = "client_gone"

#: Of an answer that broke off because of an error inside the server.
BROKEN = "broken"


def request_middleware(
    app: ASGIApp,
    max_body_bytes: int,
    gate: Callable[[ASGIApp], ASGIApp],
    count: Callable[[ASGIApp], ASGIApp],
    *,
    trace: Callable[[ASGIApp], ASGIApp] | None = None,
    log_prompts: bool = False,
) -> ASGIApp:
    """Wrap an application: id, span if there are traces, counts, log line, gate, the body's limit.

    Args:
        app: What is wrapped.
        max_body_bytes: Size of a request's body.
        gate: Wraps an application with what lets requests in.
        count: Wraps one with what counts requests.
        trace: Wraps one with what makes a span of each request.
        log_prompts: Whether the log gets prompts and texts.
    """
    logged = RequestLog(gate(BodyLimit(app, max_body_bytes)), log_prompts=log_prompts)
    inner = count(logged)
    return RequestId(inner if trace is None else trace(inner))


def refusal_reason(scope: Scope, reason: str) -> None:
    """Leave the reason of an error response for the request's log line."""
    scope[_REASON] = reason


def note_texts(
    scope: Scope,
    prompts: Sequence[str | Sequence[int]],
    texts: Sequence[Sequence[str]] | None = None,
) -> None:
    """Leave prompts, and their texts once there are some, for the log: see ``--log_prompts``."""
    scope[_TEXTS] = {"prompts": prompts, "texts": texts}


def note_refusal(scope: Scope, refusal: str) -> None:
    """Leave the kind of refusal, one word, for whoever counts them."""
    scope[_REFUSAL] = refusal


def refusal_of(scope: Scope) -> str | None:
    """What :func:`note_refusal` left."""
    return scope.get(_REFUSAL)


def status_of(scope: Scope) -> int | None:
    """The status of the answer that a request has got, as :class:`RequestId` saw it."""
    return scope.get(_STATUS)


def note_generation(scope: Scope, call: object) -> None:
    """Leave a request's ``GenerationCall`` for its span."""
    scope[_GENERATION] = call


def generation_of(scope: Scope) -> Any:
    """What :func:`note_generation` left, if anything."""
    return scope.get(_GENERATION)


async def refuse(
    scope: Scope,
    send: Send,
    status: int,
    text: str,
    refusal: str,
    retry_after: int,
    *,
    close: bool = False,
) -> None:
    """Answer without the application, which has not seen the request.

    Args:
        scope: The request's.
        send: Its.
        status: Of the answer.
        text: What the client and the log are told.
        refusal: See :func:`note_refusal`.
        retry_after: Seconds.
        close: Whether the connection ends with the answer.
    """
    refusal_reason(scope, text)
    note_refusal(scope, refusal)
    body = orjson.dumps(error_body(scope["path"], status, text))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(retry_after).encode()),
    ]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class RequestId:
    """Gives every response an ``x-request-id``: the caller's if it is harmless, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope[_STATUS] = message["status"]
                _set_request_id(message, request_id)
            await send(message)

        # What logs or measures further in takes the id from the request's headers.
        _set_request_id(scope, request_id)
        await self._app(scope, receive, send_with_id)


class RequestLog:
    """Logs every request in one line, with the reason if it was refused.

    An error inside the server is logged with its traceback here and nowhere else.
    """

    def __init__(self, app: ASGIApp, *, log_prompts: bool) -> None:
        self._app = app
        self._log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            note_refusal(scope, CLIENT_GONE)
        except Exception:
            request_id = request_id_of(scope)
            logger.exception("request %s failed", request_id, extra={"request_id": request_id})
        finally:
            status = 499 if refusal_of(scope) == CLIENT_GONE else status_of(scope) or 500
            _log(scope, status, time.perf_counter() - started)
            if self._log_prompts and _TEXTS in scope:
                # In a text log it looks as in Python, with every special character escaped.
                fields = {"message": "prompts and texts", "request_id": request_id_of(scope)}
                logger.info(fields | scope[_TEXTS])


def _log(scope: Scope, status: int, seconds: float) -> None:
    path = scope["path"]
    quiet = status < 400 and QUIET_PATHS.fullmatch(path) is not None
    reason = scope.get(_REASON)
    is_bad = status >= 400 or reason is not None  # a stream may break off after its 200
    level = logging.WARNING if is_bad else logging.DEBUG if quiet else logging.INFO
    fields = {
        "method": scope["method"],
        "path": path[:200],
        "status": status,
        "milliseconds": round(seconds * 1000, 1),
        "request_id": request_id_of(scope),
        "caller": caller_of(scope),
    } | ({"error": reason} if reason else {})
    logger.log(
        level,
        "%s %r %d %.1f ms id=%s%s%s",
        *list(fields.values())[:5],
        f" caller={caller_of(scope)}" if CALLER in scope else "",
        f" error={reason!r}" if reason else "",
        extra=fields,
    )


class BodyLimit:
    """Refuses a body that is too large, with 413 while it arrives, or encoded, with 415."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0
        checked = False

        # Raised where the application reads the body, so that its error handlers answer.
        async def limited_receive() -> Message:
            nonlocal received, checked
            if not checked:
                self._check_headers(scope)
                checked = True
            message = await receive()
            received += len(message.get("body", b""))
            self._check_size(received)
            return message

        await self._app(scope, limited_receive, send)

    def _check_headers(self, scope: Scope) -> None:
        encoding = header(scope, b"content-encoding", b"identity").decode("latin-1")
        if encoding.strip().lower() not in ("identity", ""):
            raise HTTPException(
                415, f"Content-Encoding: {encoding[:60]} is not supported; send plain JSON"
            )
        length = header(scope, b"content-length", b"0")
        if length.isdigit():
            self._check_size(int(length))

    def _check_size(self, size: int) -> None:
        if size > self._max_body_bytes:
            raise HTTPException(413, f"the body is over the limit of {self._max_body_bytes} bytes")


def header(scope: Scope, name: bytes, default: bytes) -> bytes:
    """The last header of a name, which is in lower case as ASGI has all names."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[-1] if values else default


def request_id_of(scope: Scope) -> str:
    """A request's id, once :class:`RequestId` has seen it."""
    return header(scope, b"x-request-id", b"").decode()


def _set_request_id(target: Scope | Message, request_id: str) -> None:
    """Make it the only one in a request's scope or a response's first message."""
    others = [item for item in target.get("headers", []) if item[0].lower() != b"x-request-id"]
    target["headers"] = [*others, (b"x-request-id", request_id.encode())]
