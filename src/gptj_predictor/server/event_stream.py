"""Server-sent events (WHATWG HTML, section 9.2): an answer that comes in pieces."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gptj_predictor.server.errors import KNOWN, Problem, problem_of
from gptj_predictor.server.middleware import BROKEN, CLIENT_GONE, note_refusal, refusal_reason

logger = logging.getLogger(__name__)

#: Seconds without news after which a comment line shows that the connection lives.
KEEP_ALIVE_SECONDS = 15.0

#: A line that every client skips.
KEEP_ALIVE = b": waiting\n\n"

#: nginx would gather the events, and others keep them.
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(data: object) -> bytes:
    """One event with an object as JSON, which has no line breaks."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def error_event(problem: Problem) -> bytes:
    """The last event of a stream that fails, in most protocols."""
    return event({"error": problem.text})


class EventStream(Response):
    """Sends events as they come; each waits until the one before has been taken.

    An error is the last event, as the status has been sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        error_event: Callable[[Problem], bytes],
        work: AsyncExitStack,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            events: What is sent.
            error_event: Makes the last event when ``events`` raises.
            work: What the request holds until the end of the answer.
        """
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]  # an empty body's
        self._events = events
        self._error_event = error_event
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        try:
            async with self._work:
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                async for data in self._events_and_error(scope):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except ClientDisconnect:
            note_refusal(scope, CLIENT_GONE)

    async def _events_and_error(self, scope: Scope) -> AsyncIterator[bytes]:
        try:
            async for data in self._events:
                yield data
        except Exception as error:
            problem = problem_of(error)
            if not isinstance(error, KNOWN):
                logger.exception("a stream failed")
            refusal_reason(scope, problem.text)
            note_refusal(scope, problem.refusal or BROKEN)
            yield self._error_event(problem)
