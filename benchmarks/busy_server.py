"""What do four prompts together cost, and does the health route still answer meanwhile?

    .venv/bin/python benchmarks/busy_server.py [--model FOLDER] [--tokens 64] [--flags ...]

Each round asks for every prompt alone, then for all four in one request. While the four are
generated, a second connection probes ``/v2/health/ready`` every 10 ms. All figures are medians over
the rounds, but for the probes.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time

from serving import Server, connect, predict

PROMPTS = [
    "Everytime I look to the sky, I always think",
    "Right now is the perfect time to",
    "The one thing I will never regret is",
    "The secret to a happy life is to",
]
PROBE_INTERVAL = 0.01


class Probes:
    """Probes the health route while the ``with`` block runs."""

    def __init__(self, url: str) -> None:
        self.seconds: list[float] = []
        self._client = connect(url)
        self._end = threading.Event()

    def __enter__(self) -> None:
        self._end.clear()
        self._thread = threading.Thread(target=self._probe)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _probe(self) -> None:
        while not self._end.wait(PROBE_INTERVAL):
            started = time.perf_counter()
            self._client.get("/v2/health/ready").raise_for_status()
            self.seconds.append(time.perf_counter() - started)

    def __str__(self) -> str:
        ordered = [seconds * 1e3 for seconds in sorted(self.seconds)]
        return (
            f"health meanwhile, {len(ordered)} probes: median {statistics.median(ordered):.1f} ms, "
            f"99 of 100 under {ordered[int(len(ordered) * 0.99)]:.1f} ms, "
            f"worst {ordered[-1]:.1f} ms"
        )


def main() -> None:
    """Run the measurement that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="snapshot folder; the bundled demo if not given")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per prompt, at least 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="of the server; comes last"
    )
    arguments = parser.parse_args()
    model = ["--model", arguments.model] if arguments.model else []
    with Server(*model, *arguments.flags) as server:
        measure(server, arguments.tokens, arguments.rounds)


def measure(server: Server, tokens: int, rounds: int) -> None:
    """Print the figures."""
    path = server.wait_until_ready()
    probes = Probes(server.url)

    def seconds(prompts: list[str], new_tokens: int) -> float:
        return predict(server.client, path, prompts, new_tokens)[1]

    seconds(PROMPTS[:1], 1)  # the first request warms the server up
    first: list[float] = []
    alone: list[float] = []
    together: list[float] = []
    for _ in range(rounds):
        first.append(seconds(PROMPTS[:1], 1))
        alone.append(max(seconds([prompt], tokens) for prompt in PROMPTS))
        with probes:
            together.append(seconds(PROMPTS, tokens))
    one_token, longest = statistics.median(first), statistics.median(alone)
    all_four = statistics.median(together)
    print(f"one prompt, one new token: {one_token:.3f} s")
    print(f"seconds per further token: {(longest - one_token) / (tokens - 1):.4f}")
    print(
        f"{tokens} new tokens: longest of four alone {longest:.2f} s, four together "
        f"{all_four:.2f} s, ratio {all_four / longest:.2f}"
    )
    print(probes)


if __name__ == "__main__":
    main()
