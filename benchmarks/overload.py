"""What happens at ten times the load that the server can take?

    .venv/bin/python benchmarks/overload.py [--model FOLDER] [--times 10] [--flags ...]

The server has one core and this program another one. First the capacity: clients that wait for each
answer, at several concurrencies; the best goodput counts. Then requests of the same mix come at a
fixed rate, whether answers come or not, from eight callers (source addresses 127.0.0.1 to 8). Then
the capacity again, because a machine's speed drifts; the goodput is compared with the mean of both.
Latency counts from the time at which a request was due, not from when it could be sent.

Goodput are complete answers within the deadline, which is sent as ``x-request-timeout``. The mix,
seeded: prompts of 8 to 64 words and as many new tokens as ``--new-tokens`` says, uniformly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from gptj_predictor.bench.text import make_sentences
from serving import Server

# The tests' client: tests/ is not installed, and lies beside this folder.
sys.path.append(str(Path(__file__).parents[1]))
from tests.support.raw_clients import Answer, NoAnswerError, RawConnection, get, post

CALLERS = [f"127.0.0.{number}" for number in range(1, 9)]
DISTINCT_REQUESTS = 2048
PROMPT_WORDS = (8, 64)
HEALTH_PATHS = ("/v2/health/live", "/v2/health/ready")
HEALTH_SECONDS = 0.1
#: Before the goodput of a load is counted.
RAMP_SECONDS = 2.0


@dataclass
class Outcome:
    """What came back. Seconds count from when a request was due."""

    good: int = 0
    late: int = 0  # 200, but cut short or after the deadline
    good_seconds: list[float] = field(default_factory=list)
    refused_seconds: list[float] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    max_backlog: int = 0  # requests that were due and had no connection yet
    max_lag: float = 0.0  # of this program behind its plan

    def add(self, answer: Answer, seconds: float, deadline: float) -> None:
        """Count an answer."""
        if answer.status == 429:
            self.refused_seconds.append(seconds)
        elif answer.status != 200:
            self.others[str(answer.status)] += 1
        elif seconds <= deadline and is_complete(answer):
            self.good += 1
            self.good_seconds.append(seconds)
        else:
            self.late += 1


def is_complete(answer: Answer) -> bool:
    """Whether the text is as long as was asked for."""
    [prediction] = json.loads(answer.body)["predictions"]
    return prediction["details"]["finish_reason"] in ("length", "eos_token")


def make_requests(path: str, new_tokens: tuple[int, int], deadline: float) -> list[bytes]:
    """The mix."""
    draw = random.Random(0)  # noqa: S311 - no secret
    words = "".join(make_sentences()).split()
    requests = []
    for _ in range(DISTINCT_REQUESTS):
        start, count = draw.randrange(len(words) - 64), draw.randint(*PROMPT_WORDS)
        tokens = draw.randint(*new_tokens)
        body = {
            "instances": [" ".join(words[start : start + count])],
            "parameters": {"min_new_tokens": tokens, "max_new_tokens": tokens, "details": True},
        }
        requests.append(post(f"{path}:predict", body, x_request_timeout=f"{deadline:g}"))
    return requests


class Generator:
    """Sends requests in the order of the mix, over connections that are kept."""

    def __init__(self, port: int, requests: list[bytes], deadline: float) -> None:
        self._port = port
        self._requests = requests
        self._deadline = deadline
        self._next = 0
        self._idle: dict[str, deque[RawConnection]] = {caller: deque() for caller in CALLERS}

    async def _send(self, due: float, outcome: Outcome) -> None:
        number, self._next = self._next, self._next + 1
        caller = CALLERS[number % len(CALLERS)]
        idle = self._idle[caller]
        try:
            connection = None
            while idle and (connection is None or not connection.is_open):
                connection = idle.pop()
            if connection is None or not connection.is_open:
                connection = await RawConnection.open(self._port, caller)
            answer = await connection.ask(self._requests[number % len(self._requests)])
        except NoAnswerError:
            outcome.others["connection lost"] += 1
            return
        except OSError as error:
            outcome.others[f"no connection: {error.strerror}"] += 1
            return
        outcome.add(answer, time.perf_counter() - due, self._deadline)
        if connection.is_open and not answer.closes:
            idle.append(connection)

    async def closed(self, concurrency: int, seconds: float) -> float:
        """Clients that wait for each answer; the goodput in answers a second."""
        outcome, ended = Outcome(), False

        async def client() -> None:
            while not ended:
                await self._send(time.perf_counter(), outcome)

        clients = [asyncio.create_task(client()) for _ in range(concurrency)]
        goodput = await goodput_of(outcome, seconds)
        ended = True
        await asyncio.gather(*clients)
        return goodput

    async def open(self, rate: float, seconds: float) -> tuple[Outcome, float]:
        """Requests at a fixed rate.

        Returns:
            What came of them, and the goodput while they came.
        """
        outcome, tasks = Outcome(), set[asyncio.Task[None]]()
        goodput = asyncio.create_task(goodput_of(outcome, seconds))
        started, number = time.perf_counter(), 0
        while not goodput.done():
            due = started + number / rate
            wait = due - time.perf_counter()
            if wait > 0 or number % 64 == 0:
                await asyncio.sleep(max(0.0, wait))  # what came back is read however late this is
            outcome.max_lag = max(outcome.max_lag, -wait)
            task = asyncio.create_task(self._send(due, outcome))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            outcome.max_backlog = max(outcome.max_backlog, len(tasks))
            number += 1
        await asyncio.gather(*tasks)
        return outcome, goodput.result()


async def goodput_of(outcome: Outcome, seconds: float) -> float:
    """Good answers a second, once the load that begins now has been there for a moment."""
    await asyncio.sleep(RAMP_SECONDS)
    good, started = outcome.good, time.perf_counter()
    await asyncio.sleep(seconds)
    return (outcome.good - good) / (time.perf_counter() - started)


async def probe_health(port: int, seconds: list[float], failures: Counter[str]) -> None:
    """Ask both health routes ten times a second, for ever."""
    connections = [await RawConnection.open(port) for _ in HEALTH_PATHS]
    due = time.perf_counter()
    while True:
        for connection, path in zip(connections, HEALTH_PATHS, strict=True):
            answer = await connection.ask(get(path))
            seconds.append(time.perf_counter() - due)
            if answer.status != 200:
                failures[f"health {answer.status}"] += 1
        due = max(due + HEALTH_SECONDS, time.perf_counter() - HEALTH_SECONDS)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))


def percentile(values: list[float], share: float) -> float:
    """In milliseconds; not a number if there are no values."""
    if not values:
        return math.nan
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1e3


async def capacity(generator: Generator, arguments: argparse.Namespace) -> float:
    """The best goodput of clients that wait."""
    best = 0.0
    for concurrency in arguments.concurrency:
        goodput = await generator.closed(concurrency, arguments.capacity_seconds)
        print(f"{concurrency} clients that wait: {goodput:.2f} answers/s", flush=True)
        best = max(best, goodput)
    return best


async def measure(port: int, requests: list[bytes], arguments: argparse.Namespace) -> bool:
    """Print the figures; whether they are as good as they should be."""
    generator = Generator(port, requests, arguments.deadline)
    await generator.closed(arguments.concurrency[0], arguments.warm_up)
    before = await capacity(generator, arguments)
    rate = arguments.times * before
    health: list[float] = []
    failures: Counter[str] = Counter()
    probe = asyncio.create_task(probe_health(port, health, failures))
    outcome, goodput = await generator.open(rate, arguments.seconds)
    probe.cancel()
    after = await capacity(generator, arguments)
    share = goodput / statistics.mean([before, after])
    refused_p99, health_p99 = percentile(outcome.refused_seconds, 0.99), percentile(health, 0.99)
    print(
        f"offered {rate:.0f}/s for {arguments.seconds:g} s: goodput {goodput:.2f}/s, "
        f"{share:.1%} of the capacity, which was {before:.2f}/s before and {after:.2f}/s after\n"
        f"good answers: p50 {percentile(outcome.good_seconds, 0.5):.0f} ms, "
        f"p99 {percentile(outcome.good_seconds, 0.99):.0f} ms; "
        f"late or cut short: {outcome.late}\n"
        f"429: {len(outcome.refused_seconds)}, "
        f"p50 {percentile(outcome.refused_seconds, 0.5):.1f} ms, p99 {refused_p99:.1f} ms\n"
        f"health: {len(health)} probes, p50 {percentile(health, 0.5):.1f} ms, "
        f"p99 {health_p99:.1f} ms\n"
        f"anything else: {dict(outcome.others + failures) or 'nothing'}\n"
        f"this program: at most {outcome.max_backlog} requests open, "
        f"{outcome.max_lag * 1e3:.0f} ms behind its plan"
    )
    return share >= 0.95 and refused_p99 < 100 and health_p99 < 50


def main() -> None:
    """Run the measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="snapshot folder; the bundled demo if not given")
    parser.add_argument("--times", type=float, default=10, help="the capacity")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--deadline", type=float, default=10, help="of a request, in seconds")
    parser.add_argument("--new-tokens", type=int, nargs=2, default=(16, 128), metavar="N")
    parser.add_argument("--concurrency", type=int, nargs="+", default=(16, 64, 256))
    parser.add_argument("--capacity-seconds", type=float, default=20, help="per concurrency")
    parser.add_argument("--warm-up", type=float, default=5, help="seconds")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a goal is missed")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="of the server; comes last"
    )
    arguments = parser.parse_args()
    own, *others = sorted(os.sched_getaffinity(0))
    model = ["--model", arguments.model] if arguments.model else []
    os.sched_setaffinity(0, others[:1] or [own])  # the server inherits it
    with Server(*model, "--threads", 1, *arguments.flags) as server:
        os.sched_setaffinity(0, [own])
        path = server.wait_until_ready()
        port = int(server.url.rsplit(":", 1)[1])
        requests = make_requests(path, tuple(arguments.new_tokens), arguments.deadline)
        is_good = asyncio.run(measure(port, requests, arguments))
    if arguments.check and not is_good:
        raise SystemExit("a goal was missed")


if __name__ == "__main__":
    main()
