"""What every HTTP request passes before and after its route: limits, request id, one log line."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

logger = logging.getLogger(__name__)

#: A caller's request id is repeated to it and to the log, so it must be harmless in both.
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

#: Probes and scrapes come every few seconds; they are logged only on a failure.
QUIET_PATHS = re.compile(r"/|/metrics|/v2/health/(live|ready)|/v1/models/[^/:]+")


def request_guard(app: ASGIApp, max_body_bytes: int) -> ASGIApp:
    """Wrap an application.

    * A body beyond ``max_body_bytes`` is refused while it arrives, with 413; an encoded one
      (``Content-Encoding``) with 415.
    * Every response carries ``x-request-id``, the caller's if it gave one.
    * Every request is logged in one line, with the reason if it was refused; an error inside the
      server is logged with its traceback here and nowhere else.
    """

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, max_body_bytes)
        try:
            await app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = 499
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
        finally:
            exchange.log()

    return guarded


def refusal_reason(scope: Scope, reason: str) -> None:
    """Leave the reason of an error response for the request's log line."""
    scope["gptj_predictor.reason"] = reason


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max_body_bytes = max_body_bytes
        self._received = 0
        self._started = time.perf_counter()
        self._headers = {name.lower(): value for name, value in scope["headers"]}
        self.status = 500
        given = self._headers.get(b"x-request-id", b"").decode("latin-1")
        self.request_id = given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4())
        # Whatever logs further in takes the id from the request's headers.
        others = [header for header in scope["headers"] if header[0].lower() != b"x-request-id"]
        scope["headers"] = [*others, (b"x-request-id", self.request_id.encode())]

    async def receive(self) -> Message:
        """Pass a message on, unless it is a body that is not taken."""
        if self._received == 0:
            self._check_headers()
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self._max_body_bytes:
            self._refuse_size()
        return message

    def _check_headers(self) -> None:
        encoding = self._headers.get(b"content-encoding", b"identity").decode("latin-1")
        if encoding.strip().lower() not in ("identity", ""):
            raise HTTPException(
                415, f"Content-Encoding: {encoding[:60]} is not supported; send plain JSON"
            )
        length = self._headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            self._refuse_size()

    def _refuse_size(self) -> None:
        raise HTTPException(413, f"the body is over the limit of {self._max_body_bytes} bytes")

    async def send(self, message: Message) -> None:
        """Pass a message on, the response's head with the request id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [h for h in message.get("headers", []) if h[0].lower() != b"x-request-id"]
            message["headers"] = [*headers, (b"x-request-id", self.request_id.encode())]
        await self._send(message)

    def log(self) -> None:
        """Write the request's line."""
        path = self._scope["path"]
        quiet = self.status < 400 and QUIET_PATHS.fullmatch(path) is not None
        level = logging.DEBUG if quiet else logging.INFO if self.status < 400 else logging.WARNING
        milliseconds = (time.perf_counter() - self._started) * 1000
        reason = self._scope.get("gptj_predictor.reason")
        logger.log(
            level,
            "%s %r %d %.1f ms id=%s%s",
            self._scope["method"],
            path[:200],
            self.status,
            milliseconds,
            self.request_id,
            f" error={reason!r}" if reason else "",
        )


def receive_deadline(seconds: float) -> type[HttpToolsProtocol]:
    """uvicorn's HTTP protocol, closing a connection whose request does not arrive in time.

    uvicorn limits only the pause between requests; a client that sends its headers or its body a
    byte at a time would hold a connection for ever.
    """

    class DeadlineProtocol(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.access_log = False  # request_guard logs, with the reason and the request id

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_deadline()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_deadline()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._start_deadline()

        def on_message_complete(self) -> None:
            self._stop_deadline()
            super().on_message_complete()

        def _start_deadline(self) -> None:
            self._stop_deadline()
            self._deadline = self.loop.call_later(seconds, self._close)

        def _stop_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close(self) -> None:
            logger.warning("a request did not arrive within %g s; connection closed", seconds)
            self.transport.close()

    return DeadlineProtocol
