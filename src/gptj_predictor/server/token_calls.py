"""Tokens of a text and the text of tokens, for clients that count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gptj_predictor.server.admission import MIN_RETRY_SECONDS, QueueFullError, Refusal
from gptj_predictor.tokenizer import Tokenizer

Result = TypeVar("Result")

#: Calls that wait for the thread. Each has its body in memory, and a long one takes a second.
MAX_WAITING = 64


class TokenCalls:
    """A tokenizer in one thread of its own, so that prompts for the engine never wait for it.

    The event loop alone uses it.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "token-calls")
        self._num_open = 0

    async def encode(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """The tokens of a text.

        Raises:
            QueueFullError: too many calls wait.
        """
        return await self._run(tokenizer.encode, text)

    async def decode(self, tokenizer: Tokenizer, token_ids: list[int]) -> str:
        """The text of tokens, special ones included.

        Raises:
            QueueFullError: too many calls wait.
        """
        return await self._run(tokenizer.decode, token_ids)

    async def _run(self, call: Callable[..., Result], argument: object) -> Result:
        if self._num_open > MAX_WAITING:
            text = f"{MAX_WAITING} calls wait for the tokenizer; come back in {MIN_RETRY_SECONDS} s"
            raise QueueFullError(Refusal.QUEUED_REQUESTS, text, MIN_RETRY_SECONDS)
        self._num_open += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, call, argument)
        finally:
            self._num_open -= 1
