"""A cheap asynchronous HTTP client that says exactly what came back."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Self

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Answer:
    """A complete response."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether the connection ends with it."""
        return self.headers.get("connection", "").lower() == "close"


class NoAnswerError(ConnectionError):
    """The connection ended before a response was complete.

    Attributes:
        received: What had come of it.
    """

    def __init__(self, received: bytes) -> None:
        super().__init__(f"the connection ended after {len(received)} bytes of the response")
        self.received = received


class RawConnection(asyncio.Protocol):
    """A connection that is kept, with one request at a time on it."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[Answer] | None = None
        self._head: tuple[int, dict[str, str], int] | None = None
        self.is_open = True

    @classmethod
    async def open(cls, port: int, source: str | None = None) -> Self:
        """Connect, from a loopback address of one's own if it is given.

        Raises:
            OSError: nobody listens, or the connection was reset at once.
        """
        loop = asyncio.get_running_loop()
        local = None if source is None else (source, 0)
        _, connection = await loop.create_connection(cls, HOST, port, local_addr=local)
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswerError(bytes(self._received)))

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        self._received += data
        if self._head is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            status, headers = _parse_head(bytes(self._received[:end]))
            if "content-length" not in headers:
                return  # a stream, which nobody reads here
            self._head = status, headers, end + 4 + int(headers["content-length"])
        status, headers, length = self._head
        if len(self._received) >= length and self._answer and not self._answer.done():
            size = int(headers["content-length"])
            self._answer.set_result(
                Answer(status, headers, bytes(self._received[length - size : length]))
            )

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its response.

        Raises:
            NoAnswerError: the connection ended.
        """
        answer = self.expect()
        self.send(request)
        return await answer

    def expect(self) -> asyncio.Future[Answer]:
        """The response of the request that is sent next; it may come before all is sent."""
        self._received.clear()
        self._head = None
        self._answer = asyncio.get_running_loop().create_future()
        if not self.is_open:
            self._answer.set_exception(NoAnswerError(b""))
        return self._answer

    def send(self, data: bytes) -> None:
        """Send a request, or a part of one."""
        self._transport.write(data)

    def close(self) -> None:
        """Hang up."""
        self._transport.abort()


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    return int(first.split(" ", 2)[1]), {name.lower(): value.strip() for name, value in pairs}


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode()


def post(path: str, body: object, **headers: str) -> bytes:
    """A request as bytes; ``x_request_id`` becomes ``x-request-id``."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = [f"POST {path} HTTP/1.1", "host: test", *lines, f"content-length: {len(content)}"]
    return "\r\n".join([*head, "", ""]).encode() + content
