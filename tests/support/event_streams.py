"""Server-sent events as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Streamed:
    """A streamed answer, read to its end.

    Attributes:
        events: Each event's data, in order.
        num_comments: Comment lines among them.
    """

    events: list[Any] = field(default_factory=list)
    num_comments: int = 0

    @property
    def last(self) -> Any:
        """The last event."""
        return self.events[-1]

    def texts(self) -> dict[tuple[int, int], str]:
        """V1's pieces of each sequence, put together."""
        texts: dict[tuple[int, int], str] = {}
        for piece in self.events[:-1]:
            assert list(piece) == ["instance", "sequence", "text"]
            assert piece["text"]
            key = piece["instance"], piece["sequence"]
            texts[key] = texts.get(key, "") + piece["text"]
        return texts


def events(lines: Iterable[str]) -> Iterator[str | None]:
    """Each event's data, ``None`` for a comment; one line of data each, and an empty one behind."""
    lines = iter(lines)
    for line in lines:
        assert line.startswith(("data: ", ":")), line
        yield line.removeprefix("data: ") if line.startswith("data: ") else None
        assert next(lines) == ""


def read_stream(response: httpx.Response) -> Streamed:
    """Read an answer as it comes; only its media type may say that it is one."""
    assert response.status_code == 200, response.read()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    streamed = Streamed()
    for data in events(response.iter_lines()):
        if data is None:
            streamed.num_comments += 1
        else:
            streamed.events.append(data if data == "[DONE]" else json.loads(data))
    return streamed


def stream(client: httpx.Client, path: str, body: object) -> Streamed:
    """Ask for a streamed answer and read it."""
    with client.stream("POST", path, json=body) as response:
        return read_stream(response)
