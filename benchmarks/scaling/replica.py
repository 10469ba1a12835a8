"""A replica: a batch that its sequences share, and a queue in front of it.

There is one event for each prompt and for each text that ends, not one for each token. All running
sequences get tokens at the same rate, which depends on how many there are. So the replica counts
the tokens that each of them has got since the start; a text ends when that count reaches what it
was when the text began plus the text's tokens. This is processor sharing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from simpy import Environment
from simpy.events import Event, Timeout

from scaling.service import ServiceTimes

#: The server's ``--max_queued_requests``.
MAX_QUEUED_REQUESTS = 512


@dataclass(slots=True)
class Request:
    """A request, and when it got what, in seconds; negative: not yet."""

    arrival: float
    prompt_tokens: int
    new_tokens: int
    first_token: float = -1.0
    end: float = -1.0


class Replica:
    """A server with one batch.

    A request waits in the queue for a place in the batch, its prompt is computed while the running
    texts pause, which gives the first token, and then it gets tokens with all others.
    """

    def __init__(
        self,
        environment: Environment,
        service: ServiceTimes,
        *,
        max_queued: int = MAX_QUEUED_REQUESTS,
        ended: Callable[[Replica, Request], None],
        expired: Callable[[Replica, Request], None],
        timeout: float = float("inf"),
    ) -> None:
        """Prepare.

        Args:
            environment: The clock.
            service: How long steps and prompts take.
            max_queued: Requests that may wait for a place in the batch.
            ended: Called with each request that has all its tokens.
            expired: Called with each request that waited longer than ``timeout``.
            timeout: Seconds from its arrival until a request that still waits is dropped.
        """
        self._environment = environment
        self._service = service
        self._max_queued = max_queued
        self._ended = ended
        self._expired = expired
        self._timeout = timeout
        self._waiting: deque[Request] = deque()
        self._prompts: deque[Request] = deque()
        self._prompt_left = 0.0  # seconds of the first prompt
        self._running: list[tuple[float, int, Request]] = []  # by the count at which they end
        self._number = count()  # orders texts that end together
        self._tokens = 0.0
        self._since = environment.now
        self._timer: Event | None = None
        #: Where the cluster keeps it.
        self.position = -1

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Requests in the queue and in the batch."""
        return len(self._waiting) + len(self._prompts) + len(self._running)

    def offer(self, request: Request) -> bool:
        """Take a request; False if the queue is full, which is status 429."""
        self._drop_expired()
        if len(self._prompts) + len(self._running) >= self._service.max_batch:
            if len(self._waiting) >= self._max_queued:
                return False
            self._waiting.append(request)
            return True
        self._start(request)
        return True

    def _drop_expired(self) -> None:
        oldest = self._environment.now - self._timeout
        while self._waiting and self._waiting[0].arrival < oldest:
            self._expired(self, self._waiting.popleft())

    def _start(self, request: Request) -> None:
        """Give a request its place in the batch."""
        self._advance()
        self._append(request)
        if len(self._prompts) == 1:
            self._plan()

    def _append(self, request: Request) -> None:
        self._prompts.append(request)
        if len(self._prompts) == 1:
            self._prompt_left = request.prompt_tokens * self._service.prefill_seconds

    def _advance(self) -> None:
        """Count what was done since the last event."""
        now = self._environment.now
        if self._prompts:
            self._prompt_left -= now - self._since
        elif self._running:
            step = self._service.step_seconds[len(self._running)]
            self._tokens += (now - self._since) / step
        self._since = now

    def _plan(self) -> None:
        """Set the timer to what ends next. SimPy has no cancelling: the old one is ignored."""
        if self._prompts:
            delay = self._prompt_left
        elif self._running:
            step = self._service.step_seconds[len(self._running)]
            delay = (self._running[0][0] - self._tokens) * step
        else:
            self._timer = None
            return
        self._timer = Timeout(self._environment, max(delay, 0.0))
        self._timer.callbacks.append(self._go_on)

    def _go_on(self, event: Event) -> None:
        if event is not self._timer:
            return
        self._advance()
        now = self._environment.now
        if self._prompts:
            request = self._prompts.popleft()
            request.first_token = now
            end = self._tokens + request.new_tokens - 1
            heappush(self._running, (end, next(self._number), request))
            if self._prompts:
                self._prompt_left = self._prompts[0].prompt_tokens * self._service.prefill_seconds
        else:
            self._tokens = self._running[0][0]  # exactly, whatever was rounded
        done = []
        while not self._prompts and self._running and self._running[0][0] <= self._tokens:
            done.append(heappop(self._running)[2])
        self._drop_expired()
        room = self._service.max_batch - len(self._prompts) - len(self._running)
        for _ in range(min(room, len(self._waiting))):
            self._append(self._waiting.popleft())
        self._plan()
        for request in done:
            request.end = now
            self._ended(self, request)
