"""A server with small limits that runs one sequence at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.support.raw_clients import RawConnection, post
from tests.support.servers import NAME, RunningServer
from tests.support.stats import is_idle, read_stats

PATH = f"/v1/models/{NAME}:predict"
MAX_SECONDS = 4
MAX_REQUESTS = 5
MAX_TOKENS = 600
FLAGS = {
    "--max_batch_size": 1,
    "--max_queued_requests": MAX_REQUESTS,
    "--max_queued_tokens": MAX_TOKENS,
    "--max_request_seconds": MAX_SECONDS,
    "--cors_origins": "*",
}


class Strict:
    """A server that runs one sequence at a time, and what its engine does."""

    def __init__(self, server: RunningServer, stats: Path) -> None:
        self.server = server
        self._stats = stats

    @property
    def stats(self) -> dict[str, Any]:
        return read_stats(self._stats)

    async def until(self, name: str, value: int, seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while self.stats[name] != value:
                await asyncio.sleep(0.005)

    async def until_idle(self, seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not is_idle(self.stats):
                await asyncio.sleep(0.005)

    @contextlib.asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Its one place is taken, by a caller of its own, until the block ends."""
        await self.until_idle()
        async with self.client("127.0.9.9") as holder:
            holder.send(generation(2048))
            await self.until("num_running", 1)
            yield
        await self.until_idle()

    @contextlib.asynccontextmanager
    async def client(self, source: str = "127.0.0.1") -> AsyncIterator[RawConnection]:
        connection = await RawConnection.open(self.server.port, source)
        try:
            yield connection
        finally:
            connection.close()


def asked(
    tokens: int, prompt: str = "a", *, sequences: int = 1, stream: bool = False
) -> dict[str, Any]:
    """A body that asks for exactly so many tokens, prompt included."""
    parameters = {
        "min_length": tokens,
        "max_length": tokens,
        "num_return_sequences": sequences,
        "details": True,
    }
    return {"instances": [prompt], "parameters": parameters, "stream": stream}


def generation(
    tokens: int, prompt: str = "a", *, sequences: int = 1, stream: bool = False, **headers: str
) -> bytes:
    """A request with it."""
    return post(PATH, asked(tokens, prompt, sequences=sequences, stream=stream), **headers)
