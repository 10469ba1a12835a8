"""How long does everybody else wait after greedy clients hang up, and when too many come at once?

    .venv/bin/python benchmarks/hang_ups.py [--model FOLDER] [--clients 8] [--at-once 1500]

Eight clients ask for 32 sequences of 2,048 tokens each and hang up after a second. Then somebody
asks for one short text: what it takes is compared with the same request of an idle server. The
difference should be no more than the longest step of all their sequences, printed beside.

Then 1,500 requests come at once, from eight callers: how many are answered, how many refused, and
how long both take.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# The tests' servers and clients: tests/ is not installed, and lies beside this folder.
sys.path.append(str(Path(__file__).parents[1]))
from tests.support.raw_clients import Answer, RawConnection, post
from tests.support.servers import RunningServer, wait_for
from tests.support.stats import STATS_SERVER, is_idle, read_stats

SEQUENCES, TOKENS = 32, 2048
SHORT_TOKENS = 8
HANG_UP_SECONDS = 1.0
ROUNDS = 5
LOOK_SECONDS = 0.005


def generation(path: str, sequences: int, tokens: int) -> bytes:
    """A request for exactly so many tokens."""
    parameters = {"min_length": tokens, "max_length": tokens}
    return post(path, {"instances": ["The"] * sequences, "parameters": parameters})


async def ask(port: int, request: bytes, source: str) -> tuple[Answer, float]:
    """On a new connection; the answer, and its seconds."""
    started = time.perf_counter()
    connection = await RawConnection.open(port, source)
    answer = await connection.ask(request)
    connection.close()
    return answer, time.perf_counter() - started


async def short(port: int, path: str) -> float:
    """Seconds of a short request."""
    answer, seconds = await ask(port, generation(path, 1, SHORT_TOKENS), "127.0.0.99")
    if answer.status != 200:
        raise SystemExit(f"a short request got {answer.status}")
    return seconds


@dataclass(frozen=True)
class Step:
    """A step, or the mean of a few short ones that ended between two looks."""

    num_running: int  # sequences, before its end
    seconds: float


async def watch_steps(stats: Path, steps: list[Step]) -> None:
    """Note the engine's steps, for ever."""
    before = read_stats(stats)
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        after = read_stats(stats)
        count = after["num_steps"] - before["num_steps"]
        if count:
            seconds = after["step_seconds"]["total"] - before["step_seconds"]["total"]
            steps.append(Step(before["num_running"], seconds / count))
        before = after


async def hang_up(port: int, path: str, stats: Path, clients: int) -> None:
    """The first question."""
    idle = statistics.median([await short(port, path) for _ in range(20)])
    print(f"idle: {idle * 1e3:.0f} ms for {SHORT_TOKENS - 1} tokens")
    for _ in range(ROUNDS):
        steps: list[Step] = []
        watch = asyncio.create_task(watch_steps(stats, steps))
        greedy = [await RawConnection.open(port) for _ in range(clients)]
        for connection in greedy:
            connection.send(generation(path, SEQUENCES, TOKENS))
        await asyncio.sleep(HANG_UP_SECONDS)
        running = read_stats(stats)
        for connection in greedy:
            connection.close()
        waited = await short(port, path)
        watch.cancel()
        full = [step.seconds for step in steps if step.num_running == running["num_running"]]
        full = full or [math.nan]
        print(
            f"after {running['num_running']} sequences, {running['num_waiting']} waiting, were "
            f"given up: {waited * 1e3:.0f} ms, {(waited - idle) * 1e3:+.0f} ms; {len(full)} steps "
            f"of all of them took {statistics.mean(full) * 1e3:.0f} ms each, the longest "
            f"{max(full) * 1e3:.0f} ms"
        )
        while not is_idle(read_stats(stats)):
            await asyncio.sleep(0.02)


async def all_at_once(port: int, path: str, count: int) -> None:
    """The second question."""
    request = generation(path, 1, SHORT_TOKENS)
    sources = [f"127.0.0.{1 + number % 8}" for number in range(count)]
    results = await asyncio.gather(*(ask(port, request, source) for source in sources))
    statuses = Counter(answer.status for answer, _ in results)
    print(f"{count} at once: {dict(statuses)}")
    for status in sorted(statuses):
        seconds = sorted(seconds for answer, seconds in results if answer.status == status)
        print(
            f"  {status}: p50 {statistics.median(seconds):.2f} s, "
            f"p99 {seconds[int(len(seconds) * 0.99)]:.2f} s, last {seconds[-1]:.2f} s"
        )


def main() -> None:
    """Run the measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="snapshot folder; the bundled demo if not given")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=1500)
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="of the server; comes last"
    )
    arguments = parser.parse_args()
    model = ["--model", arguments.model] if arguments.model else []
    with tempfile.TemporaryDirectory() as folder:
        stats = Path(folder) / "stats"
        flags = [*model, *arguments.flags]
        with RunningServer(*flags, program=STATS_SERVER, STATS=str(stats)) as server:
            server.wait_until_ready()
            wait_for(stats.exists)
            asyncio.run(hang_up(server.port, server.predict_path, stats, arguments.clients))
            asyncio.run(all_at_once(server.port, server.predict_path, arguments.at_once))


if __name__ == "__main__":
    main()
