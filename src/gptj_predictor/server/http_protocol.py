"""uvicorn's HTTP protocol with limits that it lacks."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gptj_predictor.server.request_counts import HEAD_TOO_LARGE, NOT_HTTP

logger = logging.getLogger(__name__)

#: Bytes of a request beside its body: request line, headers, chunk sizes, trailers. uvicorn would
#: keep any number of them.
MAX_HEAD_BYTES = 65_536


def limited_protocol(
    receive_seconds: float, count_unread: Callable[[str], None]
) -> type[HttpToolsProtocol]:
    """uvicorn's HTTP protocol for clients that mean no good.

    * A connection whose request does not arrive in time is closed. uvicorn limits only the pause
      between requests; a client that sends a byte at a time would hold a connection for ever.
    * A request with too many bytes beside its body gets 431.
    * What comes behind a request that is not answered yet is dropped, and the connection closes
      with that answer. uvicorn would stop reading until then and not see that the client hangs up.
      (RFC 9112, 9.3.2: a client sends again what it sent ahead and has no answer to.)

    Args:
        receive_seconds: For a request to arrive whole.
        count_unread: Told ``NOT_HTTP`` or ``HEAD_TOO_LARGE`` where no request came of it.
    """

    class LimitedProtocol(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _head_bytes = 0
        _drops = False

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.access_log = False  # RequestLog logs, with the reason and the request id

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._start_deadline()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_deadline()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._drops or self.transport.is_closing():
                return
            self._head_bytes += len(data)
            super().data_received(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                logger.warning("a request's head is over %d bytes; refused", MAX_HEAD_BYTES)
                text = f"the request's head is over the limit of {MAX_HEAD_BYTES} bytes"
                self._refuse(431, text, HEAD_TOO_LARGE)

        def on_message_begin(self) -> None:
            if self._owes_an_answer:
                self._drop_the_rest()
                return
            super().on_message_begin()
            self._start_deadline()

        def on_url(self, url: bytes) -> None:
            if not self._drops:
                super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._drops:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            if not self._drops:
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._drops:
                self._head_bytes -= len(body)
                super().on_body(body)

        def on_message_complete(self) -> None:
            if not self._drops:
                self._head_bytes = 0
                self._stop_deadline()
                super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "this is not HTTP", NOT_HTTP)

        def _refuse(self, status: int, text: str, reason: str) -> None:
            """Answer what no request came of, and close."""
            if self._owes_an_answer and not self.cycle.more_body:
                self._drop_the_rest()  # what is wrong came behind the request
                return
            if not self._owes_an_answer:  # else the applications count it, as a client that is gone
                count_unread(reason)
            if not (self._owes_an_answer and self.cycle.response_started):
                self._answer(status, orjson.dumps({"error": text}))
            self.transport.close()

        def _answer(self, status: int, body: bytes) -> None:
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", str(uuid.uuid4()).encode()),
                (b"connection", b"close"),
            ]
            lines = [b"%s: %s\r\n" % header for header in headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))

        @property
        def _owes_an_answer(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _drop_the_rest(self) -> None:
            self._drops = True
            self.cycle.keep_alive = False

        def _start_deadline(self) -> None:
            self._stop_deadline()
            self._deadline = self.loop.call_later(receive_seconds, self._close)

        def _stop_deadline(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close(self) -> None:
            logger.warning(
                "a request did not arrive within %g s; connection closed", receive_seconds
            )
            self.transport.close()

    return LimitedProtocol
