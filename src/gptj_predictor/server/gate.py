"""The first look at a request: may it come in at all? A refusal here costs next to nothing."""

from __future__ import annotations

from contextlib import suppress

from kserve.errors import InvalidInput
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptj_predictor.server.active_requests import ActiveRequests
from gptj_predictor.server.admission import QueueFullError
from gptj_predictor.server.callers import caller_of
from gptj_predictor.server.drain import Drain, Phase
from gptj_predictor.server.http_requests import timeout_seconds
from gptj_predictor.server.middleware import RETRY_AFTER_SECONDS, refuse
from gptj_predictor.server.protocol import GRPC_PROBES, protocol_of


class Gate:
    """Refuses work while the server drains and while the queue is full, before it is read.

    Requests that it lets in are counted, so that the server ends when the last one is answered.
    """

    def __init__(self, app: ASGIApp, requests: ActiveRequests, drain: Drain) -> None:
        self._app = app
        self._requests = requests
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        is_work = scope["type"] == "http" and scope["method"] == "POST"
        if not is_work or GRPC_PROBES.fullmatch(scope["path"]) is not None:
            await self._app(scope, receive, send)
            return
        if self._drain.phase is Phase.REFUSING:
            text = "the server is stopping; ask again, another one answers"
            await refuse(scope, send, 503, text, "draining", RETRY_AFTER_SECONDS, close=True)
            return
        if protocol_of(scope) is not None:  # it generates text, and so waits in the queue
            try:
                self._check(scope)
            except QueueFullError as error:
                await refuse(scope, send, 429, str(error), error.refusal, error.retry_after)
                return
        self._drain.num_open += 1
        try:
            await self._app(scope, receive, self._closing(send))
        finally:
            self._drain.num_open -= 1

    def _check(self, scope: Scope) -> None:
        with suppress(InvalidInput):  # the route says so
            self._requests.check(caller_of(scope), timeout_seconds(scope))

    def _closing(self, send: Send) -> Send:
        """Close the connection after an answer that was given while the server drains."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._drain.has_begun:
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        return send_and_close
