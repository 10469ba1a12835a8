"""Signals at random moments under load: nothing that the server took on is left unanswered.

A request counts as accepted once the server has read it. Then it must be answered in full: 200, or
503 with ``Retry-After``. A connection that is refused, or reset before a byte of the response came,
may only mean that the server never read the request; so the server's log must not know its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.forked_servers import ForkedServer, ServerForks
from tests.support.raw_clients import Answer, NoAnswerError, RawConnection, get, post
from tests.support.servers import NAME, RunningServer, catches, wait_for

pytestmark = [pytest.mark.process, pytest.mark.slow]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
PATH = f"/v1/models/{NAME}:predict"
READY = get("/v2/health/ready")
CLIENTS = 12
#: Of the servers here, in seconds. Two cores may have more to do than this test.
GRACE = 4
#: What a round's requests ask for, of which one may take longer than the grace period.
TOKENS = ((1, 5, 40), (1, 5, 300), (5, 40, 2000))
#: Of the rounds, those whose signal need not wait for a first text.
EARLY_SHARE = 0.4
#: Rounds that go on at once: most of a round is waiting.
AT_ONCE = 4


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerForks]:
    with ServerForks(tmp_path_factory.mktemp("logs")) as running:
        yield running


def generation(request_id: str, tokens: int, sequences: int = 1) -> bytes:
    parameters = {
        "min_new_tokens": tokens,
        "max_new_tokens": tokens,
        "num_return_sequences": sequences,
        "details": True,
    }
    return post(PATH, {"instances": ["a"], "parameters": parameters}, x_request_id=request_id)


def finish_reasons(answer: Answer) -> set[str]:
    predictions = json.loads(answer.body)["predictions"]
    return {one["details"]["finish_reason"] for one in predictions}


@dataclass
class Load:
    """Clients that ask again and again, and the fate of each request."""

    server: ForkedServer
    seed: int
    tokens: tuple[int, ...]
    answers: dict[str, Answer] = field(default_factory=dict)
    lost: dict[str, bytes] = field(default_factory=dict)  # what came of the response
    refused: int = 0  # connections
    sent: int = 0
    first_text: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, number: int) -> None:
        """One client, until nobody listens any more."""
        draw = random.Random(f"{self.seed} {number}")
        connection: RawConnection | None = None
        while True:
            if connection is None or not connection.is_open or draw.random() < 0.3:
                if connection is not None:
                    connection.close()
                try:
                    connection = await RawConnection.open(self.server.port)
                except OSError:
                    self.refused += 1
                    if self.answers or self.lost:
                        return
                    await asyncio.sleep(0.02)  # it does not listen yet
                    continue
            request_id = f"{self.seed}-{number}-{self.sent}"
            self.sent += 1
            try:
                tokens, sequences = draw.choice(self.tokens), draw.randint(1, 3)
                answer = await connection.ask(generation(request_id, tokens, sequences))
            except NoAnswerError as error:
                self.lost[request_id] = error.received
                continue
            self.answers[request_id] = answer
            if answer.status == 200:
                self.first_text.set()
            if answer.status == 503:
                await asyncio.sleep(0.02)  # the model is being loaded, or the server stops

    def check(self) -> Counter[str]:
        """Assert that every request has a fate that it may have; count them."""
        log = self.server.log
        fates: Counter[str] = Counter()
        for request_id, answer in self.answers.items():
            assert answer.headers["x-request-id"] == request_id
            if answer.status == 200:
                reasons = finish_reasons(answer)
                assert reasons <= {"length", "shutdown"}
                fates["cut short" if "shutdown" in reasons else "complete"] += 1
            else:
                assert answer.status == 503, answer
                assert int(answer.headers["retry-after"]) > 0
                fates["503"] += 1
        for request_id, received in self.lost.items():
            assert received == b"", (request_id, received)
            assert f"id={request_id}\n" not in log, log
            fates["never read"] += 1
        assert self.sent == len(self.answers) + len(self.lost)
        assert "Traceback" not in log, log
        return fates


def test_signals_under_load(forks: ServerForks, large: bool) -> None:
    rounds = 200 if large else 20

    async def run() -> list[tuple[Counter[str], float]]:
        results = []
        for first in range(0, rounds, AT_ONCE):
            together = (one_round(forks, first + number) for number in range(AT_ONCE))
            results += await asyncio.gather(*together)
        return results

    results = asyncio.run(run())
    total = sum((fates for fates, _ in results), Counter[str]())
    longest = max(seconds for _, seconds in results)
    print(f"{rounds} rounds, {dict(total)}; the longest end took {longest:.2f} s of {GRACE}")
    assert len(results) == rounds
    assert total["cut short"]
    assert total["503"]


async def one_round(forks: ServerForks, seed: int) -> tuple[Counter[str], float]:
    """Load from the start on, a signal at some time, and what became of all requests."""
    draw = random.Random(seed)
    delay = draw.choice([0, 0, 0.5])
    server = forks.start("--grace_period", GRACE, "--drain_delay", delay, "--max_batch_size", 8)
    load = Load(server, seed, draw.choice(TOKENS))
    clients = [asyncio.create_task(load.run(number)) for number in range(CLIENTS)]
    # Some of the signals come while it starts, which takes some 0.3 s.
    is_early = draw.random() < EARLY_SHARE
    if not is_early:
        async with asyncio.timeout(60):
            await load.first_text.wait()
    await asyncio.sleep(draw.uniform(0, 0.4 if is_early else 1.2))
    server.send(draw.choice(SIGNALS))
    started = time.monotonic()
    code = await asyncio.to_thread(server.wait, 3 * GRACE)
    seconds = time.monotonic() - started
    done, pending = await asyncio.wait(clients, timeout=5)
    for client in pending:  # it never listened
        client.cancel()
    for client in done:
        client.result()
    assert code == 0, server.log
    assert seconds < GRACE, server.log
    fates = load.check()
    assert fates["complete"] or is_early
    return fates, seconds


@pytest.mark.parametrize("number", SIGNALS)
def test_drain_delay(forks: ServerForks, number: signal.Signals) -> None:
    """Not ready at once, yet serving; then 503 for what is new, while the last one runs on."""

    async def run() -> None:
        server = forks.start("--grace_period", 30, "--drain_delay", 1)
        await until_ready(server)
        long = await RawConnection.open(server.port)
        long.send(generation("long", 2000, 8))
        await asyncio.sleep(0.1)
        server.send(number)
        started = time.monotonic()
        while (ready := await ask(server, READY)).status == 200:
            assert time.monotonic() - started < 0.5
        assert ready.status == 503
        answer = await ask(server, generation("new", 3))
        assert answer.status == 200
        assert answer.closes
        while (late := await ask(server, generation("late", 3))).status == 200:
            await asyncio.sleep(0.02)
        assert time.monotonic() - started >= 1
        assert late.status == 503
        assert int(late.headers["retry-after"]) > 0
        assert late.closes
        long.close()  # the last one that anybody waits for
        assert await asyncio.to_thread(server.wait, 10) == 0
        assert "drained: 0 requests were not answered" in server.log

    asyncio.run(run())


def test_what_would_pass_the_grace_period(forks: ServerForks) -> None:
    """It ends with what it has; what has not begun gets 503."""

    async def run() -> None:
        server = forks.start("--grace_period", 2, "--max_batch_size", 1)
        await until_ready(server)
        running = asyncio.create_task(ask(server, generation("running", 2000, 8)))
        await asyncio.sleep(0.2)
        waiting = asyncio.create_task(ask(server, generation("waiting", 2000)))
        await asyncio.sleep(0.1)
        server.send(signal.SIGTERM)
        started = time.monotonic()
        answer = await running
        assert answer.status == 200
        assert "shutdown" in finish_reasons(answer)
        answer = await waiting
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert await asyncio.to_thread(server.wait, 10) == 0
        assert 1 < time.monotonic() - started < 2

    asyncio.run(run())


def test_second_sigint_does_not_wait(forks: ServerForks) -> None:
    async def run() -> None:
        server = forks.start("--grace_period", 60)
        await until_ready(server)
        request = asyncio.create_task(ask(server, generation("lost", 2000, 8)))
        await asyncio.sleep(0.2)
        server.send(signal.SIGINT)
        await asyncio.sleep(0.2)
        server.send(signal.SIGINT)
        assert await asyncio.to_thread(server.wait, 5) == 128 + signal.SIGINT
        with pytest.raises(NoAnswerError):
            await request

    asyncio.run(run())


def test_signals_while_importing(large: bool) -> None:
    """The real command: a fork has no imports left to do."""
    for number in range(20 if large else 1):
        draw = random.Random(number)
        chosen = draw.choice(SIGNALS)
        with RunningServer(grpc=True) as server:
            wait_for(lambda: catches(server.process.pid, chosen))  # noqa: B023 - called at once
            time.sleep(draw.uniform(0, 3))
            assert server.stop(chosen) == 0, server.log
            assert "Traceback" not in server.log


async def ask(server: ForkedServer, request: bytes) -> Answer:
    """On a new connection."""
    connection = await RawConnection.open(server.port)
    try:
        return await connection.ask(request)
    finally:
        connection.close()


async def until_ready(server: ForkedServer) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(OSError):
                if (await ask(server, READY)).status == 200:
                    return
            await asyncio.sleep(0.02)
