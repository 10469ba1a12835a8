"""What the contract says of operation, for OpenAI's routes; see ``test_operations`` for V1's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.event_streams import events, read_stream
from tests.support.metrics import Scrape
from tests.support.openai_clients import COMPLETIONS, PATHS, check_refused, put_together
from tests.support.raw_clients import Answer, RawConnection, post
from tests.support.secrets import KEYS, MountedSecret, bearer
from tests.support.servers import TALKATIVE, RunningServer, wait_for
from tests.support.strict import MAX_REQUESTS, Strict

pytestmark = pytest.mark.process

#: Both ways to get an answer.
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["at once", "stream"])


def asked(tokens: int, *, count: int = 1, n: int = 1, stream: bool = False) -> dict[str, Any]:
    """A body that asks for exactly so many new tokens."""
    fields = {"max_tokens": tokens, "min_new_tokens": tokens, "n": n, "stream": stream}
    return {"prompt": ["a"] * count, "details": True, **fields}


def told(answer: Answer) -> dict[str, Any]:
    """The error of an answer; its shape is as everywhere."""
    response = httpx.Response(answer.status, headers=answer.headers, content=answer.body)
    error: dict[str, Any] = response.json()["error"]
    check_refused(response, answer.status, error["code"], error["message"])
    return error


@pytest.mark.parametrize("path", PATHS)
def test_queue_full(strict: Strict, path: str) -> None:
    """A refusal needs no body."""

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(strict.busy())
            for number in range(1, MAX_REQUESTS):
                waiter = await stack.enter_async_context(strict.client())
                waiter.send(post(path, asked(9, stream=number % 2 == 0)))
                await strict.until("queued_requests", number)
            client = await stack.enter_async_context(strict.client())
            request = post(path, asked(9))
            answer = await client.ask(request[: request.index(b"\r\n\r\n") + 4])
            assert answer.status == 429
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            error = told(answer)
            assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
            assert "your share of the queue" in error["message"]

    asyncio.run(run())


def test_deadline_of_a_running_request(strict: Strict) -> None:
    """What there is; it was cut off."""
    response = strict.server.client.post(
        COMPLETIONS, json=asked(2000), headers={"x-request-timeout": "0.5"}
    )
    [choice] = response.json()["choices"]
    assert choice["text"]
    assert choice["finish_reason"] == "length"
    assert choice["details"]["finish_reason"] == "deadline"


def test_deadline_of_a_running_stream(strict: Strict) -> None:
    """The first of three texts has begun then, and all of them have an end."""
    timeout = {"x-request-timeout": "0.5"}
    body = asked(2000, n=3, stream=True)
    with strict.server.client.stream("POST", COMPLETIONS, json=body, headers=timeout) as response:
        *pieces, done = read_stream(response).events
    assert done == "[DONE]"
    whole, reasons = put_together(pieces)
    assert whole[0]
    assert (whole[1], whole[2]) == ("", "")
    assert reasons == dict.fromkeys(range(3), "length")


@STREAM
def test_deadline_of_a_waiting_request(strict: Strict, stream: bool) -> None:
    async def run() -> None:
        async with strict.busy():
            response = await asyncio.to_thread(
                strict.server.client.post,
                COMPLETIONS,
                json=asked(9, stream=stream),
                headers={"x-request-timeout": "0.2"},
            )
        message = "the request's time was over before its first token"
        if not stream:
            check_refused(response, 504, None, message)
            return
        [last] = read_stream(response).events
        error = {"message": message, "type": "server_error", "param": None, "code": None}
        assert last == {"error": error}

    asyncio.run(run())


@STREAM
def test_client_gone_while_it_runs(strict: Strict, stream: bool) -> None:
    async def run() -> None:
        await strict.until_idle()
        async with strict.client() as client:
            client.send(post(COMPLETIONS, asked(2000, n=8, stream=stream)))
            await strict.until("num_running", 1)
        # A step takes a few milliseconds; all eight sequences would take half a minute.
        await strict.until_idle(1)

    asyncio.run(run())


@STREAM
def test_client_gone_while_it_waits(strict: Strict, stream: bool) -> None:
    async def run() -> None:
        async with strict.busy():
            async with strict.client() as client:
                client.send(post(COMPLETIONS, asked(1000, stream=stream)))
                await strict.until("queued_requests", 1)
            await strict.until("queued_requests", 0, 1)
            await strict.until("num_waiting", 0, 1)

    asyncio.run(run())


def test_error_after_the_first_byte(locked: RunningServer, key_secret: MountedSecret) -> None:
    """It is the last event, and the metrics know of it."""
    fault = key_secret.folder / "fault"
    with locked.client.stream(
        "POST", COMPLETIONS, json=asked(2000, stream=True), headers=bearer(KEYS[0])
    ) as response:
        lines = response.iter_lines()
        head = [next(lines) for _ in range(4)]
        fault.write_text("exception")
        try:
            *_, last = events([*head, *lines])
        finally:
            fault.unlink()
    assert last is not None
    message = "internal error; the server's log has the details"
    error = {"message": message, "type": "server_error", "param": None, "code": None}
    assert json.loads(last) == {"error": error}
    wait_for(lambda: COMPLETIONS in locked.log)
    scrape = Scrape(locked.client.get("/metrics", headers=bearer(KEYS[0])).text)
    assert scrape.value("gptj_requests_total", outcome="error", protocol="openai") == 1


def test_error_before_the_first_byte(locked: RunningServer, key_secret: MountedSecret) -> None:
    fault = key_secret.folder / "fault"
    for word, status in (("exception", 500), ("memory", 503)):
        fault.write_text(word)
        try:
            response = locked.client.post(
                COMPLETIONS, json={"prompt": [5] * 99}, headers=bearer(KEYS[0])
            )
        finally:
            fault.unlink()
        check_refused(response, status, None, "")
        assert response.json()["error"]["type"] == "server_error"
        assert ("retry-after" in response.headers) == (status == 503)


@pytest.fixture(scope="module")
def draining() -> Iterator[RunningServer]:
    """Runs one sequence at a time, and its streams say often that they live."""
    flags = ("--grace_period", "3", "--max_batch_size", "1")
    with RunningServer(*flags, program=TALKATIVE) as running:
        running.wait_until_ready()
        yield running


def test_keep_alive(draining: RunningServer) -> None:
    """A stream that waits for its turn has comments, and its text after them."""
    client = draining.client
    with client.stream("POST", COMPLETIONS, json=asked(2000, stream=True)) as holder:
        held = holder.iter_lines()
        next(held)  # it has the one place
        with client.stream("POST", COMPLETIONS, json=asked(9, stream=True)) as response:
            lines = response.iter_lines()
            assert [next(lines) for _ in range(4)] == [": waiting", ""] * 2
            holder.close()
            *pieces, done = filter(None, events(lines))
    assert done == "[DONE]"
    assert put_together([json.loads(piece) for piece in pieces])[1] == {0: "length"}


def test_drain(draining: RunningServer) -> None:
    """New requests are refused; what runs ends with what it has."""

    def ask() -> list[Any]:
        with httpx.Client(base_url=draining.client.base_url, timeout=60) as client:
            body = asked(2000, count=8, stream=True)
            with client.stream("POST", COMPLETIONS, json=body) as response:
                begun.append(True)
                return read_stream(response).events

    async def refused() -> Answer:
        connection = await RawConnection.open(draining.port)
        return await connection.ask(post(COMPLETIONS, asked(9)))

    begun: list[bool] = []
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask)
        wait_for(lambda: bool(begun))
        time.sleep(0.2)
        draining.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in draining.log)
        answer = asyncio.run(refused())
        *pieces, done = running.result()
    assert answer.status == 503
    assert answer.closes
    assert told(answer)["type"] == "server_error"
    assert done == "[DONE]"
    _, reasons = put_together(pieces)
    assert reasons == dict.fromkeys(range(8), "length")
    assert draining.process.wait(20) == 0
