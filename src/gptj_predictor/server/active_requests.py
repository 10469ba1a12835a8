"""The requests that the server is working on, and what may end one before its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gptj_predictor.engine.request import FinishReason
from gptj_predictor.server.admission import Admission, Ticket


@dataclass(eq=False)
class ActiveRequest:
    """A request from its arrival to its answer. The event loop alone uses it.

    Attributes:
        caller: Whose turn it takes in the queue.
        ticket: Its part of the queue.
        seconds: What it may take.
        received: When it came, in seconds of ``time.monotonic``.
        ended: Why it has to end before its texts are complete: ``DEADLINE``, ``SHUTDOWN``,
            ``CANCELLED`` (nobody waits for the answer any more) or ``ERROR`` (the engine hangs).
    """

    caller: str
    ticket: Ticket
    seconds: float
    received: float = field(default_factory=time.monotonic)
    ended: FinishReason | None = None
    _on_end: list[Callable[[FinishReason], None]] = field(default_factory=list)

    def end(self, reason: FinishReason) -> None:
        """End it early. The first reason counts, but an error ends what waits for the engine."""
        if self.ended is None or reason is FinishReason.ERROR:
            self.ended = reason
            for call in self._on_end:
                call(reason)

    def on_end(self, call: Callable[[FinishReason], None]) -> None:
        """Have a function called when it ends early; at once if it has."""
        self._on_end.append(call)
        if self.ended is not None:
            call(self.ended)


class ActiveRequests:
    """All of them."""

    def __init__(self, admission: Admission, max_seconds: float) -> None:
        """Every request goes through ``admission`` and may take ``max_seconds``."""
        self.admission = admission
        self._max_seconds = max_seconds
        self._requests: set[ActiveRequest] = set()

    def check(self, caller: str, seconds: float) -> None:
        """Refuse early what :meth:`begin` would refuse.

        Raises:
            QueueFullError: the queue has no room.
        """
        self.admission.check(caller, min(seconds, self._max_seconds))

    @contextmanager
    def begin(self, caller: str, seconds: float) -> Iterator[ActiveRequest]:
        """Work on a request.

        Args:
            caller: Who sent it.
            seconds: What it may take, if that is less than the server's own limit.

        Raises:
            QueueFullError: the queue has no room.
        """
        seconds = min(seconds, self._max_seconds)
        request = ActiveRequest(caller, self.admission.enter(caller, seconds), seconds)
        loop = asyncio.get_running_loop()
        timer = loop.call_later(seconds, request.end, FinishReason.DEADLINE)
        self._requests.add(request)
        try:
            yield request
        finally:
            timer.cancel()
            request.ticket.leave()
            self._requests.discard(request)

    def end_all(self, reason: FinishReason) -> None:
        """End every request early."""
        for request in list(self._requests):
            request.end(reason)
