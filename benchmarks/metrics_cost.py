"""What do the metrics cost: a step, a refused request, a scrape?

    .venv/bin/python benchmarks/metrics_cost.py

Times, without a model, what the engine counts after a step that gave every sequence of its batch a
token; what a request costs that is refused before its body is read, with and without the counting
around it; and, with the demo served, what a scrape takes, with vLLM's names too. All of it is
processor time, so that other programs matter little.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Iterator

import psutil
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.engine.stats import Meter
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.server.admission import Refusal
from gptj_predictor.server.middleware import RequestId, refuse
from gptj_predictor.server.request_counts import CountRequests, RequestCounts
from serving import Server, predict

BATCHES = (1, 8, 256)
CONTEXT = 2048
PATH = "/v1/models/gpt-j:predict"
CALLS, ROUNDS = 2000, 7


def main() -> None:
    """Measure and print a line per case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=CALLS, help="in each of the rounds")
    calls = parser.parse_args().calls
    for batch in BATCHES:
        microseconds = step_cost(batch, calls)
        print(
            f"a step with batch {batch}: {microseconds:.1f} us, "
            f"{microseconds / batch:.3f} us per sequence"
        )
    plain, counted = request_cost(RequestId(answer_429), calls), request_cost(counted_429(), calls)
    print(f"a refused request: {plain:.1f} us, {counted:.1f} us with the counts")
    alive, scrape = scrape_costs(max(calls // 10, 1))
    print(f"a scrape: {scrape:.1f} ms, where a probe takes {alive:.1f} ms")


def median(call: Callable[[], object], calls: int) -> float:
    """Microseconds of a call: the median of some rounds' means."""
    means = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        for _ in range(calls):
            call()
        means.append((time.thread_time() - started) / calls)
    return statistics.median(means) * 1e6


def step_cost(batch: int, calls: int) -> float:
    """Microseconds to count a decoding step."""
    meter = Meter(CONTEXT)
    params = SamplingParams(0, CONTEXT, 0.0, 0, 1.0, 1.0, 0)
    sequences = [Sequence([0], params) for _ in range(batch)]
    now = time.monotonic()
    for sequence in sequences:
        meter.scheduled(sequence, now)
    meter.tokens(sequences, now)

    def step() -> None:
        started = time.monotonic()
        meter.batch_size.observe(batch)
        now = time.monotonic()
        meter.step_seconds.observe(now - started)
        meter.tokens(sequences, now)

    return median(step, calls)


async def answer_429(scope: Scope, receive: Receive, send: Send) -> None:
    """What :class:`Gate` does while the queue is full."""
    await refuse(scope, send, 429, "the queue is full", Refusal.QUEUED_REQUESTS, 1)


def counted_429() -> ASGIApp:
    """The same with the counting around it, and what tells it the status."""
    return RequestId(CountRequests(answer_429, RequestCounts()))


def request_cost(app: ASGIApp, calls: int) -> float:
    """Microseconds of a request to an application."""

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    async def ask() -> float:
        started = time.thread_time()
        for _ in range(calls):
            scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
            await app(scope, receive, send)
        return (time.thread_time() - started) / calls

    return statistics.median(asyncio.run(ask()) for _ in range(ROUNDS)) * 1e6


def scrape_costs(scrapes: int) -> Iterator[float]:
    """Milliseconds of the server's processor time for a liveness probe, and for a scrape."""
    with Server("--model", DEMO_SNAPSHOT, "--metrics_compat", "vllm") as server:
        predict(server.client, server.wait_until_ready(), ["The sky"], 2)
        times = psutil.Process(server.process.pid).cpu_times
        for path in ("/v2/health/live", "/metrics"):
            before = times()
            for _ in range(scrapes):
                server.client.get(path)
            after = times()
            yield (after.user + after.system - before.user - before.system) / scrapes * 1000


if __name__ == "__main__":
    main()
