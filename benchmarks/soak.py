"""Does a server under full load of all kinds stay right, complete and of one size?

    .venv/bin/python benchmarks/soak.py [--minutes 30] [--clients 48] [--seed 0]

The server has the demo's weights in fp32, a small batch and a small queue, so that it is always
full. Clients come back again and again with requests of five kinds:

* good: a prompt, parameters and a seed out of a list. Each text must be the one that the same
  request got before, alone on the idle server.
* bad: bodies, methods and paths that must get their 4xx.
* cancelled: hangs up at some moment.
* slow: a good request whose bytes come in pieces over up to two seconds.
* short of time: a deadline that may pass; a text must be a beginning of the right one.

At the end: every request has one fate, no 5xx but the 504 of a deadline, no pages in use, an empty
queue, and memory within 2 % of what it was after the warm-up. Memory is ``Pss`` of
``/proc/PID/smaps_rollup``, every second; compared are the medians of the first and the last sixth
of the time after the warm-up, which is a sixth of the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The tests' servers and clients: tests/ is not installed, and lies beside this folder.
sys.path.append(str(Path(__file__).parents[1]))
from tests.support.bad_bodies import UNREADABLE
from tests.support.exact import Exact
from tests.support.raw_clients import Answer, NoAnswerError, RawConnection, get, post
from tests.support.servers import NAME, RunningServer, wait_for
from tests.support.stats import STATS_SERVER, is_idle, read_stats

PATH = f"/v1/models/{NAME}:predict"
#: The KV cache is small: its memory counts once a page has been used, and all of a larger one would
#: take longer than the warm-up.
FLAGS = (
    *("--max_batch_size", "12", "--max_queued_requests", "24", "--precision", "native"),
    *("--kv_cache_gib", "0.05"),
)
KINDS = {"good": 8, "bad": 3, "cancelled": 3, "slow": 1, "short of time": 1}
PROMPTS = ("The secret to a happy life is", "In the valley", "Message: I love it.", " the" * 60, "")
#: In which any request must have its fate.
MAX_SECONDS = 120
MEMORY_SECONDS = 1.0
MAX_GROWTH = 0.02

#: What must be refused: the request, and its status.
BAD_CALLS = (
    (get(PATH), 405),
    (get("/nope"), 404),
    (post("/v1/models/other:predict", {"instances": ["a"]}), 404),
    (post(PATH, b"x" * 100, content_encoding="gzip"), 415),
    (post(PATH, {"instances": [" the" * 2100]}), 400),
    (post(PATH, {"instances": ["a"]}, x_request_timeout="soon"), 400),
    *((post(PATH, body if isinstance(body, bytes) else body.encode()), 400)
      for body, _ in UNREADABLE.values()),
)  # fmt: skip


@dataclass
class Case:
    """A request whose text is known."""

    prompt: str
    parameters: dict[str, Any]
    texts: list[str] = field(default_factory=list)

    def request(self, **headers: str) -> bytes:
        """As bytes."""
        body = {"instances": [self.prompt], "parameters": self.parameters}
        return post(PATH, body, **headers)


def make_cases(draw: random.Random, count: int) -> list[Case]:
    """Of all lengths, greedy and sampled, with one sequence or a few, with and without a stop."""
    cases = []
    for number in range(count):
        parameters: dict[str, Any] = {
            "max_new_tokens": draw.choice([1, 4, 20, 60, 120]),
            "temperature": draw.choice([0, 0.7, 2]),
            "seed": number,
            "num_return_sequences": draw.choice([1, 1, 1, 3]),
            "repetition_penalty": draw.choice([1, 1.3]),
            "details": True,
        }
        if draw.random() < 0.2:
            parameters["stop"] = draw.choice(["e", " the", "\n"])
        cases.append(Case(draw.choice(PROMPTS), parameters))
    return cases


def texts(answer: Answer) -> list[dict[str, Any]]:
    """The predictions of a 200."""
    predictions: list[dict[str, Any]] = json.loads(answer.body)["predictions"]
    return predictions


class Soak:
    """The clients and what they found."""

    def __init__(self, port: int, cases: list[Case], seed: int) -> None:
        self.port = port
        self.cases = cases
        self.seed = seed
        self.sent: Counter[str] = Counter()
        self.fates: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def learn(self) -> None:
        """Have each case's texts made, one after the other, with nothing beside."""
        connection = await RawConnection.open(self.port)
        for case in self.cases:
            answer = await connection.ask(case.request())
            assert answer.status == 200, answer.body
            case.texts = [one["generated_text"] for one in texts(answer)]
        connection.close()

    async def client(self, number: int, until: float) -> None:
        """Ask for one thing after the other."""
        draw = random.Random(f"{self.seed} {number}")  # noqa: S311 - no secret
        source = f"127.0.0.{1 + number % 8}"
        connection = await RawConnection.open(self.port, source)
        while time.monotonic() < until:
            if not connection.is_open or draw.random() < 0.05:
                connection.close()
                connection = await RawConnection.open(self.port, source)
            [kind] = draw.choices(list(KINDS), list(KINDS.values()))
            self.sent[kind] += 1
            try:
                async with asyncio.timeout(MAX_SECONDS):
                    fate = await getattr(self, kind.replace(" ", "_"))(connection, draw)
            except (NoAnswerError, TimeoutError) as error:
                fate = "no answer"
                self.wrong.append(f"{kind}: {error!r}")
                connection.close()
            self.fates[f"{kind}: {fate}"] += 1
            if fate == "429":
                await asyncio.sleep(draw.uniform(0, 0.2))
        connection.close()

    async def good(self, connection: RawConnection, draw: random.Random) -> str:
        """A request whose text is known."""
        case = draw.choice(self.cases)
        return self._judge(case, await connection.ask(case.request()))

    async def slow(self, connection: RawConnection, draw: random.Random) -> str:
        """The same in pieces."""
        case = draw.choice(self.cases)
        request = case.request()
        cuts = sorted(draw.sample(range(1, len(request)), 4))
        answer = connection.expect()
        for start, end in zip([0, *cuts], [*cuts, len(request)], strict=True):
            connection.send(request[start:end])
            await asyncio.sleep(draw.uniform(0, 0.4))
        return self._judge(case, await answer)

    async def short_of_time(self, connection: RawConnection, draw: random.Random) -> str:
        """The same with a deadline."""
        case = draw.choice(self.cases)
        seconds = f"{draw.uniform(0.01, 2):.3f}"
        answer = await connection.ask(case.request(x_request_timeout=seconds))
        return "504" if answer.status == 504 else self._judge(case, answer)

    async def bad(self, connection: RawConnection, draw: random.Random) -> str:
        """What must be refused; with 429 if the queue is full."""
        request, status = draw.choice(BAD_CALLS)
        answer = await connection.ask(request)
        if answer.status not in (status, 429):
            self.wrong.append(f"{request[:200]!r} got {answer.status}")
        return str(answer.status)

    async def cancelled(self, connection: RawConnection, draw: random.Random) -> str:
        """A request for many tokens that nobody waits for."""
        parameters = {"min_length": 1000, "max_length": 1000}
        body = {"instances": ["a"] * draw.randint(1, 3), "parameters": parameters}
        answer = asyncio.ensure_future(connection.ask(post(PATH, body)))
        done, _ = await asyncio.wait([answer], timeout=draw.choice([0, 0.02, 0.5, 1]))
        if done:
            return str(answer.result().status)
        connection.close()
        await asyncio.wait([answer])
        answer.exception()
        return "hung up"

    def _judge(self, case: Case, answer: Answer) -> str:
        if answer.status != 200:
            if answer.status != 429:
                self.wrong.append(f"{case.prompt[:30]!r} got {answer.status}: {answer.body!r}")
            return str(answer.status)
        is_cut = False
        for one, text in zip(texts(answer), case.texts, strict=True):
            got = one["generated_text"]
            if one["details"]["finish_reason"] == "deadline":
                is_cut = True
                # The last character may be a part of one that bytes are missing of.
                is_right = text.startswith(got.rstrip("\ufffd"))
            else:
                is_right = got == text
            if not is_right:
                self.wrong.append(f"{case.parameters}: {got!r} instead of {text!r}")
        return "200 cut short" if is_cut else "200"


def memory(process: int) -> int:
    """``Pss`` in bytes."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


async def run(server: RunningServer, stats: Path, arguments: argparse.Namespace) -> list[str]:
    """Print the figures; what is wrong."""
    draw = random.Random(arguments.seed)  # noqa: S311 - no secret
    soak = Soak(server.port, make_cases(draw, arguments.cases), arguments.seed)
    await soak.learn()
    seconds = arguments.minutes * 60
    started = time.monotonic()
    clients = [
        asyncio.create_task(soak.client(number, started + seconds))
        for number in range(arguments.clients)
    ]
    samples: list[int] = []
    queued = []
    while not all(client.done() for client in clients):
        await asyncio.wait(clients, timeout=MEMORY_SECONDS)
        if time.monotonic() < started + seconds:
            samples.append(memory(server.process.pid))
            queued.append(read_stats(stats)["queued_requests"])
    for client in clients:
        client.result()
    sixth = max(1, len(samples) // 6)
    first, last = (
        statistics.median(part) for part in (samples[sixth : 2 * sixth], samples[-sixth:])
    )
    growth = last / first - 1
    for fate in sorted(soak.fates):
        print(f"{fate}: {soak.fates[fate]}")
    print(
        f"{soak.sent.total()} requests in {time.monotonic() - started:.0f} s, "
        f"queue's median {statistics.median(queued):g} requests; memory {first / 2**20:.0f} MiB "
        f"after the warm-up, {last / 2**20:.0f} MiB at the end, {growth:+.2%}"
    )
    wrong = soak.wrong
    if soak.sent.total() != soak.fates.total():
        wrong.append(f"{soak.sent.total()} sent, {soak.fates.total()} fates")
    deadline = time.monotonic() + 5
    while not is_idle(read_stats(stats)) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    figures = read_stats(stats)
    print(
        f"pages in use: {figures['used_pages']}, requests that wait: {figures['queued_requests']}"
    )
    if not is_idle(figures):
        wrong.append("it is not idle at the end")
    if "Traceback" in server.log:
        wrong.append("its log has a traceback")
    if growth > MAX_GROWTH and arguments.minutes >= 5:  # less is all warm-up
        wrong.append(f"memory grew by {growth:.2%}")
    return wrong


def main() -> None:
    """Run the soak that the command line asks for.

    Raises:
        SystemExit: something was wrong.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--cases", type=int, default=40, help="requests whose texts are known")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, stats = Exact(Path(folder) / "model").folder, Path(folder) / "stats"
        flags = ("--model", str(model), *FLAGS)
        with RunningServer(*flags, program=STATS_SERVER, STATS=str(stats)) as server:
            server.wait_until_ready()
            wait_for(stats.exists)
            wrong = asyncio.run(run(server, stats, arguments))
    if wrong:
        raise SystemExit(f"{len(wrong)} wrong, the first of them:\n" + "\n".join(wrong[:5]))
    print("all right")


if __name__ == "__main__":
    main()
