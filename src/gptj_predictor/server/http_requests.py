"""An HTTP request while it is worked on: until when, and whether its client still waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kserve.errors import InvalidInput
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from gptj_predictor.engine.request import FinishReason
from gptj_predictor.server.active_requests import ActiveRequest, ActiveRequests
from gptj_predictor.server.callers import caller_of
from gptj_predictor.server.middleware import header

#: Seconds that a client gives its request.
TIMEOUT_HEADER = b"x-request-timeout"


@asynccontextmanager
async def active_request(
    request: Request, requests: ActiveRequests
) -> AsyncIterator[ActiveRequest]:
    """Work on a request whose body has been read; it ends early when its client goes away.

    Raises:
        InvalidInput: the timeout header makes no sense.
        QueueFullError: the queue has no room.
        ClientDisconnect: the client has gone; there is nobody to answer.
    """
    with requests.begin(caller_of(request.scope), timeout_seconds(request.scope)) as active:
        watch = asyncio.create_task(_end_when_gone(request, active))
        try:
            yield active
        finally:
            watch.cancel()
        if active.ended is FinishReason.CANCELLED:
            raise ClientDisconnect


async def _end_when_gone(request: Request, active: ActiveRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    active.end(FinishReason.CANCELLED)


def timeout_seconds(scope: Scope) -> float:
    """What the client gives its request; infinite if it does not say.

    Raises:
        InvalidInput: the header makes no sense.
    """
    given = header(scope, TIMEOUT_HEADER, b"inf").decode("latin-1")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0
    if not seconds > 0:  # NaN is not either
        name = TIMEOUT_HEADER.decode()
        raise InvalidInput(f"{name}: {given[:60]!r} is not allowed; use seconds above 0")
    return seconds
