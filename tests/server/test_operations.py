"""What the contract says of operation, against a server with small limits.

Where each row of the contract's two tables is tested for V1 (``test_contract`` and so on stand for
``tests/server/test_contract.py``):

=====================================  ===========================================================
row                                    tests
=====================================  ===========================================================
queue full: 429, ``Retry-After``       here: ``test_queue_full``, ``test_token_queue_full``
fair between callers                   here: ``test_a_greedy_caller_does_not_delay_another``
deadline                               here: ``test_deadline...``
client gone                            here: ``test_client_gone...``
signals                                ``test_chaos``; ``test_process`` (load, idle)
API keys                               ``test_access``, ``test_api_keys``; TLS: ``test_tls``
metrics                                ``test_metrics``, ``test_request_counts``
traces                                 ``test_traces``, ``test_trace_export``
logs, request ids                      ``test_logs``, ``test_contract.test_one_log_line...``
details                                here: ``test_details``
streams                                ``test_streaming``, ``test_text_stream``; here where named
malformed JSON ... lone surrogates     ``test_v1_parsing``, ``test_contract.test_bad_body``
body over the limit, gzip              ``test_contract.test_body_over...``, ``test_encoded_body``
headers over the limit                 here: ``test_head_over_the_limit``
headers or body that stall             ``test_contract.test_stalled_request_is_cut_off``
unknown model, method                  ``test_contract.test_unknown_model``, ``test_method...``
not loaded yet                         ``test_process.test_not_loaded_yet``
can never fit the KV cache             ``test_process.test_what_can_never_fit_the_cache``
out of memory in a step                ``test_faults.test_out_of_memory_in_a_prefill``
engine dead, device fault, hanging     ``test_faults.test_faults_that_only_a_restart_mends``
load and unload calls                  ``test_contract.test_repository_calls_are_refused``
weights that fail their digest         ``tests/snapshot/test_cache.py``, ``test_folder.py``
anything else                          ``test_fuzz``
=====================================  ===========================================================
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import Any

import pytest

from tests.support.event_streams import events
from tests.support.metrics import Scrape
from tests.support.raw_clients import Answer, NoAnswerError, get, post
from tests.support.servers import wait_for
from tests.support.strict import (
    MAX_REQUESTS,
    MAX_SECONDS,
    MAX_TOKENS,
    PATH,
    Strict,
    asked,
    generation,
)

pytestmark = pytest.mark.process

HEAD_TOO_LARGE = 'gptj_rejections_total{reason="head_too_large"}'


def head_of(request: bytes) -> bytes:
    return request[: request.index(b"\r\n\r\n") + 4]


def details(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    return [one["details"] for one in json.loads(answer.body)["predictions"]]


def check_refused(answer: Answer, *words: str, request_id: str) -> None:
    assert answer.status == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["x-request-id"] == request_id
    assert list(json.loads(answer.body)) == ["error"]
    for word in words:
        assert word in json.loads(answer.body)["error"]


def test_queue_full(strict: Strict) -> None:
    """A caller gets four fifths of the queue, others the rest; a refusal needs no body."""

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(strict.busy())
            for number in range(1, MAX_REQUESTS):
                waiter = await stack.enter_async_context(strict.client())
                waiter.send(generation(9))
                await strict.until("queued_requests", number)
            async with strict.client() as client:
                request = generation(9, x_request_id="mine")
                answer = await client.ask(head_of(request))
                check_refused(answer, "your share", "4 requests", request_id="mine")
                client.send(request[len(head_of(request)) :])
                request = generation(9, x_request_id="again", origin="https://page.example")
                answer = await client.ask(request)
                check_refused(answer, "your share", request_id="again")
                # A page can read it.
                assert answer.headers["access-control-allow-origin"] == "*"
                assert "retry-after" in answer.headers["access-control-expose-headers"]
                assert (await client.ask(get("/v2/health/ready"))).status == 200
            other = await stack.enter_async_context(strict.client("127.0.0.2"))
            other.send(generation(9))
            await strict.until("queued_requests", MAX_REQUESTS)
            async with strict.client("127.0.0.3") as third:
                answer = await third.ask(generation(9, x_request_id="third"))
                check_refused(answer, "queue is full: 5 requests", request_id="third")

    asyncio.run(run())


def test_token_queue_full(strict: Strict) -> None:
    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(strict.busy())
            waiter = await stack.enter_async_context(strict.client())
            waiter.send(generation(600, " the" * 500))
            await strict.until("queued_tokens", 500)
            async with strict.client("127.0.0.2") as other:
                answer = await other.ask(generation(300, " the" * 101, x_request_id="other"))
                check_refused(answer, f"500 of {MAX_TOKENS}", "has 101", request_id="other")
                other.send(generation(300, " the" * 50))
                await strict.until("queued_tokens", 550)
            async with strict.client() as client:
                answer = await client.ask(generation(300, " the" * 50, x_request_id="more"))
                check_refused(answer, "your share", "500 prompt tokens", request_id="more")
        # What is alone gets in, however long it is.
        async with strict.busy(), strict.client() as client:
            client.send(generation(1500, " the" * 1000))
            await strict.until("queued_tokens", 1000)

    asyncio.run(run())


def test_a_greedy_caller_does_not_delay_another(strict: Strict) -> None:
    """Another caller's request is the next but one, whatever the first has queued."""

    async def run() -> None:
        done: list[str] = []

        async def ask(name: str, source: str, request: bytes) -> None:
            async with strict.client(source) as client:
                answer = await client.ask(request)
                assert answer.status == 200, answer.body
                done.append(name)

        greedy = [asyncio.create_task(ask("greedy", "127.0.0.1", generation(100)))]
        await strict.until("num_running", 1)
        for number in range(1, MAX_REQUESTS):
            greedy.append(asyncio.create_task(ask("greedy", "127.0.0.1", generation(50))))
            await strict.until("queued_requests", number)
        await ask("other", "127.0.0.2", generation(3))
        assert done.index("other") <= 2
        await asyncio.gather(*greedy)
        assert len(done) == MAX_REQUESTS + 1

    asyncio.run(run())


def test_deadline_of_a_running_request(strict: Strict) -> None:
    async def run() -> None:
        async with strict.client() as client:
            started = time.monotonic()
            [one] = details(await client.ask(generation(2048, x_request_timeout="0.4")))
            assert 0.4 <= time.monotonic() - started < 3
            assert one["finish_reason"] == "deadline"
            assert 0 < one["generated_tokens"] < 2047

    asyncio.run(run())


def test_deadline_of_a_waiting_request(strict: Strict) -> None:
    async def run() -> None:
        async with strict.busy(), strict.client() as client:
            answer = await client.ask(generation(9, x_request_timeout="0.2"))
            assert answer.status == 504
            assert list(json.loads(answer.body)) == ["error"]
            await strict.until("queued_requests", 0, 1)

    asyncio.run(run())


def streamed(strict: Strict, tokens: int, seconds: str) -> list[Any]:
    """The events of a streamed answer."""
    timeout = {"x-request-timeout": seconds}
    with strict.server.client.stream(
        "POST", PATH, json=asked(tokens, stream=True), headers=timeout
    ) as response:
        assert response.status_code == 200
        return [json.loads(data) for data in events(response.iter_lines()) if data is not None]


def test_deadline_of_a_running_stream(strict: Strict) -> None:
    """The last event is what an answer at once would be."""
    *pieces, last = streamed(strict, 2048, "0.5")
    [one] = last["predictions"]
    assert one["details"]["finish_reason"] == "deadline"
    assert 0 < one["details"]["generated_tokens"] < 2047
    assert "a" + "".join(piece["text"] for piece in pieces) == one["generated_text"]


def test_deadline_of_a_waiting_stream(strict: Strict) -> None:
    async def run() -> None:
        async with strict.busy():
            [last] = await asyncio.to_thread(streamed, strict, 9, "0.2")
            assert last == {"error": "the request's time was over before its first token"}

    asyncio.run(run())


def test_deadline_is_capped(strict: Strict) -> None:
    """Eight sequences, one after the other: those that never started have no tokens."""

    async def run() -> None:
        async with strict.client() as client:
            started = time.monotonic()
            request = generation(2048, sequences=8, x_request_timeout="1e9")
            all_of_them = details(await client.ask(request))
            assert MAX_SECONDS <= time.monotonic() - started < MAX_SECONDS + 3
            assert all_of_them[-1]["finish_reason"] == "deadline"
            assert all_of_them[-1]["generated_tokens"] == 0

    asyncio.run(run())


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "-inf", "1 s", ""])
def test_deadline_that_makes_no_sense(strict: Strict, value: str) -> None:
    response = strict.server.post('{"instances": ["a"]}', headers={"x-request-timeout": value})
    assert response.status_code == 400
    assert "x-request-timeout" in response.json()["error"]


@pytest.mark.parametrize("stream", [False, True], ids=["at once", "stream"])
@pytest.mark.parametrize("behind", [b"", get("/"), b"no HTTP\r\n\r\n"], ids=["", "more", "noise"])
def test_client_gone_while_it_runs(strict: Strict, behind: bytes, stream: bool) -> None:
    """Its steps stop and its pages are free, even if it sent something behind its request."""

    async def run() -> None:
        async with strict.client() as client:
            client.send(generation(2048, sequences=8, stream=stream) + behind)
            await strict.until("num_running", 1)
        # A step takes a few milliseconds; all eight sequences would take half a minute.
        await strict.until_idle(1)
        steps = strict.stats["num_steps"]
        await asyncio.sleep(0.1)
        assert strict.stats["num_steps"] == steps

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True], ids=["at once", "stream"])
def test_client_gone_while_it_waits(strict: Strict, stream: bool) -> None:
    async def run() -> None:
        async with strict.busy():
            async with strict.client() as client:
                client.send(generation(1000, stream=stream))
                await strict.until("queued_requests", 1)
            await strict.until("queued_requests", 0, 1)
            await strict.until("num_waiting", 0, 1)
            stats = strict.stats
            assert stats["num_running"] == 1
            assert stats["queued_tokens"] == 0

    asyncio.run(run())


def test_client_gone_while_it_sends(strict: Strict) -> None:
    async def run() -> None:
        steps = strict.stats["num_steps"]
        async with strict.client() as client:
            client.send(generation(1000)[:-1])
            await asyncio.sleep(0.1)
        async with strict.client() as client:
            assert (await client.ask(generation(3))).status == 200
        await strict.until_idle(1)
        assert strict.stats["num_steps"] <= steps + 2

    asyncio.run(run())


def test_details(strict: Strict) -> None:
    parameters = {"max_new_tokens": 7, "min_new_tokens": 7, "seed": 11, "details": True}
    request = post(PATH, {"instances": ["The secret to"], "parameters": parameters})

    async def run() -> None:
        async with strict.client() as client:
            [one] = details(await client.ask(request))
        assert one["finish_reason"] == "length"
        assert one["generated_tokens"] == 7
        assert one["prompt_tokens"] > 1
        assert one["cached_tokens"] >= 0
        assert one["seed"] == 11

    asyncio.run(run())


def test_sent_ahead(strict: Strict) -> None:
    """What comes behind a request before its answer is dropped, and the answer says so."""

    async def run() -> None:
        async with strict.client() as client:
            answer = await client.ask(generation(50) + generation(50) + b"\r\nnoise")
            assert details(answer)[0]["finish_reason"] == "length"
            assert answer.closes
            with pytest.raises(NoAnswerError) as none:
                await client.ask(get("/"))
            assert none.value.received == b""

    asyncio.run(run())


@pytest.mark.parametrize(
    ("flood", "counted"),
    [
        (b"GET /" + b"a" * 10**6, HEAD_TOO_LARGE),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 10**6, HEAD_TOO_LARGE),
        (b"GET / HTTP/1.1\r\n" + b"X-Many: 1\r\n" * 10**5, HEAD_TOO_LARGE),
        (
            head_of(post(PATH, b"")).replace(b"content-length: 0", b"transfer-encoding: chunked")
            + b"1;"
            + b"a" * 10**6,
            # The request was there, and its client seems to be gone.
            'gptj_requests_total{outcome="cancelled",protocol="v1"}',
        ),
    ],
    ids=["path", "header", "headers", "chunk extension"],
)
def test_head_over_the_limit(strict: Strict, flood: bytes, counted: str) -> None:
    before = Scrape.of(strict.server)
    with socket.create_connection(("127.0.0.1", strict.server.port), timeout=10) as connection:
        received = b""
        with contextlib.suppress(ConnectionError):  # it may be closed before all is sent
            connection.sendall(flood[:100_000])
            received = connection.recv(1000)
        assert received.startswith(b"HTTP/1.1 431 ")
        assert b"x-request-id: " in received
        assert b'{"error":' in received
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1000) == b""
    wait_for(lambda: bool(Scrape.of(strict.server).rises(before)))
    assert Scrape.of(strict.server).rises(before) == {counted: 1}


def test_no_websockets(strict: Strict) -> None:
    """An upgrade is not taken up: the request is answered as any other."""
    upgrade = get("/nope")[:-2] + (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )

    async def run() -> None:
        async with strict.client() as client:
            assert (await client.ask(upgrade)).status == 404

    asyncio.run(run())
