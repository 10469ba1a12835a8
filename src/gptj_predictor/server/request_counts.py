"""What becomes of the requests for texts, in plain numbers."""

from __future__ import annotations

import enum
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from gptj_predictor.engine.stats import REQUEST_SECONDS, Histogram
from gptj_predictor.server.middleware import BROKEN, CLIENT_GONE, refusal_of, status_of
from gptj_predictor.server.protocol import Protocol, protocol_of


class Outcome(enum.StrEnum):
    """What became of a request."""

    OK = "ok"
    REJECTED = "rejected"
    CANCELLED = "cancelled"  # the client has gone
    ERROR = "error"


#: Why what came is refused before there is a request, of whatever kind it would have been.
NOT_HTTP, HEAD_TOO_LARGE = "not_http", "head_too_large"

#: Why requests are refused: what :func:`note_refusal` is told, or else what the status says.
REASONS = (
    *("invalid", "too_large", "unauthenticated", "not_found", "not_ready", "draining"),
    *("queued_requests", "queued_tokens", "caller_share", "too_late"),
    *("deadline", "out_of_memory"),
    *(NOT_HTTP, HEAD_TOO_LARGE),
)
_KNOWN = frozenset(REASONS)
_BY_STATUS = {
    401: "unauthenticated",
    403: "unauthenticated",
    404: "not_found",
    413: "too_large",
    504: "deadline",
}


class RequestCounts:
    """Counts requests; the event loop alone uses it.

    Everything that can be counted is there from the start, as Prometheus wants it: the first of a
    kind is then a rise from 0, and a request costs two additions.

    Attributes:
        outcomes: By protocol and outcome.
        rejections: By reason.
        seconds: From the request to the end of its answer, if that is ``Outcome.OK``.
    """

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, ...], float] = {
            (protocol.value, outcome.value): 0 for protocol in Protocol for outcome in Outcome
        }
        self.rejections: dict[tuple[str, ...], float] = {(reason,): 0 for reason in REASONS}
        self.seconds = Histogram(REQUEST_SECONDS)

    def add(
        self, protocol: Protocol, status: int | None, refusal: str | None, seconds: float
    ) -> None:
        """Count one request.

        Args:
            protocol: Of the request.
            status: Of its answer; ``None`` if there was none.
            refusal: See :func:`note_refusal`.
            seconds: From the request to the end of its answer.
        """
        outcome, reason = _classify(status, refusal)
        self.outcomes[protocol, outcome] += 1
        if outcome is Outcome.REJECTED:
            self.rejections[(reason,)] += 1
        elif outcome is Outcome.OK:
            self.seconds.observe(seconds)

    def add_unread(self, reason: str) -> None:
        """Count what was refused before there was a request: ``NOT_HTTP``, ``HEAD_TOO_LARGE``."""
        self.rejections[(reason,)] += 1


def _classify(status: int | None, refusal: str | None) -> tuple[Outcome, str]:
    """The outcome, and the reason if it is a rejection."""
    if refusal == CLIENT_GONE:
        return Outcome.CANCELLED, ""
    if status is None or refusal == BROKEN:
        return Outcome.ERROR, ""
    if refusal in _KNOWN:  # even if a stream had begun
        return Outcome.REJECTED, refusal
    if status < 400:
        return Outcome.OK, ""
    if status in _BY_STATUS:
        return Outcome.REJECTED, _BY_STATUS[status]
    return (Outcome.REJECTED, "invalid") if status < 500 else (Outcome.ERROR, "")


class CountRequests:
    """Counts the requests for texts that go through it."""

    def __init__(self, app: ASGIApp, counts: RequestCounts) -> None:
        """Wrap an application.

        Args:
            app: What is wrapped.
            counts: What is added to.
        """
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        protocol = protocol_of(scope)
        if protocol is None:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        try:
            await self._app(scope, receive, send)
        finally:
            seconds = time.perf_counter() - started
            self._counts.add(protocol, status_of(scope), refusal_of(scope), seconds)
