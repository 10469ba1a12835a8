"""From a signal to the end: the server answers what it has taken on, and then nothing more."""

from __future__ import annotations

import asyncio
import enum
import logging
import math
import time
from collections.abc import Callable

from gptj_predictor.engine.request import FinishReason
from gptj_predictor.server.active_requests import ActiveRequests

logger = logging.getLogger(__name__)

#: Part of the grace period, at most, in which answers are sent after texts were cut short.
MARGIN_SHARE, MAX_MARGIN_SECONDS = 0.2, 5.0

#: Seconds between two looks whether all is answered.
POLL_SECONDS = 0.02


class Phase(enum.Enum):
    """How far the end has come."""

    SERVING = "all requests are served"
    DELAYING = "the server says that it is not ready, and serves all the same"
    REFUSING = "new requests are refused"


class Drain:
    """The phase, and how many requests are still to be answered."""

    def __init__(
        self, requests: ActiveRequests, *, delay_seconds: float, grace_seconds: float
    ) -> None:
        """See ``ServerSettings.drain_delay`` and ``ServerSettings.grace_period``."""
        self.phase = Phase.SERVING
        self.num_open = 0  # requests that were let in and are not answered; Gate counts them
        self._requests = requests
        self._delay_seconds = delay_seconds
        self._grace_seconds = grace_seconds
        self._begun: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the server is about to end."""
        return self.phase is not Phase.SERVING

    @property
    def margin_seconds(self) -> float:
        """What is left of the grace period when running texts are cut short."""
        return min(MAX_MARGIN_SECONDS, self._grace_seconds * MARGIN_SHARE)

    @property
    def seconds_left(self) -> float:
        """Until the process has to have ended; no end is known before a signal."""
        if self._begun is None:
            return math.inf
        return max(0.0, self._begun + self._grace_seconds - time.monotonic())

    async def run(self, *, is_ready: Callable[[], bool]) -> None:
        """Go through the phases; return when all is answered, or cannot be in time.

        Args:
            is_ready: Whether routers may have learned that the server is ready. If it is not,
                there is nothing to wait for.
        """
        loop = asyncio.get_running_loop()
        started, self._begun = loop.time(), time.monotonic()
        margin = self.margin_seconds
        if self._delay_seconds and is_ready():
            self.phase = Phase.DELAYING
            logger.info("draining: new requests are served for %g s", self._delay_seconds)
            await asyncio.sleep(min(self._delay_seconds, self._grace_seconds - margin))
        self.phase = Phase.REFUSING
        logger.info("draining: %d requests are still to be answered", self.num_open)
        if not await self._answered_by(started + self._grace_seconds - margin):
            logger.warning("draining: %d requests end with what they have", self.num_open)
            self._requests.end_all(FinishReason.SHUTDOWN)
            if not await self._answered_by(started + self._grace_seconds - margin / 2):
                self._requests.end_all(FinishReason.ERROR)
                await self._answered_by(started + self._grace_seconds - margin / 4)
        logger.info("drained: %d requests were not answered", self.num_open)

    async def _answered_by(self, at: float) -> bool:
        """Whether all is answered before a time of the event loop's clock."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(POLL_SECONDS)  # what the socket has is read first
        while self.num_open and loop.time() < at:
            await asyncio.sleep(POLL_SECONDS)
        return not self.num_open
