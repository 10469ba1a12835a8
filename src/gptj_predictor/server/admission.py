"""Who may wait: the queue's bounds, fair between callers, and when a refused one may come back."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from enum import StrEnum

#: A caller may hold as many times what is left of the queue. So a greedy one always leaves room:
#: alone it gets four fifths of the queue. (Choudhury and Hahne, "Dynamic queue length thresholds
#: for shared-memory packet switches", 1998, with alpha = 4.)
SHARE_OF_FREE = 4

#: Starts that the rate is measured over.
RATE_WINDOW = 64

#: Bounds of what a refused client is told to wait, in seconds.
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 1, 60


class Refusal(StrEnum):
    """Why a request did not get into the queue."""

    QUEUED_REQUESTS = "queued_requests"
    QUEUED_TOKENS = "queued_tokens"
    CALLER_SHARE = "caller_share"
    TOO_LATE = "too_late"


class QueueFullError(RuntimeError):
    """The queue has no room for the request; the text says what is full."""

    def __init__(self, refusal: Refusal, text: str, retry_after: int) -> None:
        super().__init__(text)
        self.refusal = refusal
        self.retry_after = retry_after  # seconds


class Admission:
    """Counts what waits for a place in the batch: requests, and their prompts' tokens.

    The event loop lets requests in; the engine's thread says when their sequences start.
    """

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        """See ``ServerSettings``."""
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()  # by caller; never zero
        self._tokens: Counter[str] = Counter()
        self._starts: deque[float] = deque(maxlen=RATE_WINDOW)

    @property
    def num_requests(self) -> int:
        """Requests of which no sequence has started."""
        return self._requests.total()

    @property
    def num_tokens(self) -> int:
        """Prompt tokens of sequences that have not started."""
        return self._tokens.total()

    def check(self, caller: str, seconds: float) -> None:
        """Refuse early what :meth:`enter` would refuse, before its body is read.

        Args:
            caller: Who asks.
            seconds: What the request may take.

        Raises:
            QueueFullError: there is no room, or its time would be over before its turn.
        """
        with self._lock:
            self._check(caller, seconds)

    def enter(self, caller: str, seconds: float) -> Ticket:
        """A request's place in the queue; see :meth:`check`.

        Raises:
            QueueFullError: there is no room, or its time would be over before its turn.
        """
        with self._lock:
            self._check(caller, seconds)
            self._requests[caller] += 1
        return Ticket(self, caller)

    def _check(self, caller: str, seconds: float) -> None:
        free = self._max_requests - self._requests.total()
        if free <= 0:
            text = f"the queue is full: {self._max_requests} requests wait"
            raise self._full(Refusal.QUEUED_REQUESTS, text)
        if self._requests[caller] >= SHARE_OF_FREE * free:
            text = f"your share of the queue is full: {self._requests[caller]} requests wait"
            raise self._full(Refusal.CALLER_SHARE, text)
        # Work on what is too late anyway would only make others late.
        wait = self._wait_seconds() if len(self._starts) == RATE_WINDOW else 0.0
        if wait > seconds:
            text = f"the queue takes about {wait:.0f} s, and the request has {seconds:g} s"
            raise self._full(Refusal.TOO_LATE, text)

    def _enter_tokens(self, caller: str, count: int) -> None:
        total = self._tokens.total()
        free = self._max_tokens - total - count
        # What is alone gets in whatever its size, or it never would.
        if total and free < 0:
            text = f"the queue is full: {total} of {self._max_tokens} prompt tokens wait"
            raise self._full(Refusal.QUEUED_TOKENS, f"{text}, and the request has {count}")
        if self._tokens[caller] and self._tokens[caller] + count > SHARE_OF_FREE * free:
            text = f"your share of the queue is full: {self._tokens[caller]} prompt tokens wait"
            raise self._full(Refusal.CALLER_SHARE, text)
        self._tokens[caller] += count

    def _full(self, refusal: Refusal, text: str) -> QueueFullError:
        seconds = self._retry_after()
        return QueueFullError(refusal, f"{text}; come back in {seconds} s", seconds)

    def _retry_after(self) -> int:
        """Seconds until what waits now will have started."""
        seconds = math.ceil(self._wait_seconds())
        return min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)

    def _wait_seconds(self) -> float:
        """The same, at the rate of the last starts; 0 if there were none."""
        if not self._starts:
            return 0.0
        rate = len(self._starts) / max(time.monotonic() - self._starts[0], 1e-3)
        return self._requests.total() / rate


class Ticket:
    """One request's part of the queue; callable from any thread."""

    def __init__(self, admission: Admission, caller: str) -> None:
        self._admission = admission
        self._caller = caller
        self._waits = True
        self._tokens = 0

    def add_tokens(self, count: int) -> None:
        """Queue the request's prompts.

        Args:
            count: Tokens of all its sequences together.

        Raises:
            QueueFullError: there is no room.
        """
        with self._admission._lock:
            self._admission._enter_tokens(self._caller, count)
            self._tokens += count

    def started(self, count: int) -> None:
        """One of its sequences has a place in the batch.

        Args:
            count: Tokens of its prompt.
        """
        with self._admission._lock:
            if self._waits:
                self._admission._starts.append(time.monotonic())
                self._stop_waiting()
            self._remove_tokens(count)

    def leave(self) -> None:
        """Nothing of it waits any more, for whatever reason; may be called again."""
        with self._admission._lock:
            self._stop_waiting()
            self._remove_tokens(self._tokens)

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits = False
            _subtract(self._admission._requests, self._caller, 1)

    def _remove_tokens(self, count: int) -> None:
        count = min(count, self._tokens)  # it may have left already
        self._tokens -= count
        _subtract(self._admission._tokens, self._caller, count)


def _subtract(counter: Counter[str], caller: str, count: int) -> None:
    """Callers that nothing is left of must not stay: there may be millions."""
    counter[caller] -= count
    if not counter[caller]:
        del counter[caller]
