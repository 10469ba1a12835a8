"""The event loop's rest after refusals."""

from __future__ import annotations

import asyncio
import time

import pytest

from gptj_predictor.server.gate import Rest

SECONDS = 0.5


def test_one_rest_for_all_refusals_of_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[object] = []
    monkeypatch.setattr(time, "sleep", happened.append)
    rest = Rest(SECONDS)

    async def refuse(number: int) -> None:
        happened.append(number)
        rest.after_this()

    async def run() -> None:
        await asyncio.gather(*(refuse(number) for number in range(3)))
        await asyncio.sleep(0.01)
        await asyncio.gather(refuse(3), refuse(4))
        await asyncio.sleep(0.01)

    asyncio.run(run())
    assert happened == [0, 1, 2, SECONDS, 3, 4, SECONDS]
