"""Is this version slower than another one?

    git worktree add ../old COMMIT
    .venv/bin/python benchmarks/two_versions.py ../old . --model FOLDER --batch 1 8

A and B are the roots of two source trees, or the addresses of two running servers. A tree's server
is started by this script, with the same flags for both. Both servers then get the same requests,
one server at a time: A B, then B A, and so on. Each pair of requests has prompts of its own, so
that no prompt is in a prefix cache. Sampling is greedy, and both must answer with the same texts.

The table has, for each batch size, the median time per token of A and of B (the seconds of a
response over its new tokens: the prompt's time and HTTP are included), and the median of the pairs'
ratios B/A with its 95 % confidence interval (bootstrap). The exit code is 1 if the upper end of an
interval is above ``--max-ratio``, or if texts differ. Run A against itself to see the noise of the
machine. The prompts of one request may begin in one step or in two, which can round differently. In
16 bit two tokens can have nearly equal logits, and then the same code may answer with other texts
at the next run: ``--texts-may-differ`` only counts them.

Needs scipy, which the extra [dev] has.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
from scipy.stats import bootstrap

from gptj_predictor.bench.text import Prompts
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.tokenizer import Tokenizer
from serving import Server, connect, environment, predict

#: Pairs of requests before the measured ones.
WARMUP_PAIRS = 2
#: Seconds before a request: OpenMP's threads of the other server spin for 0.2 s after their work.
PAUSE = 0.3


@dataclass(frozen=True)
class Pair:
    """The same request to both servers, in seconds."""

    batch: int
    a: float
    b: float
    same_texts: bool

    @property
    def ratio(self) -> float:
        """Above 1: B is slower."""
        return self.b / self.a


@dataclass(frozen=True)
class Version:
    """One of the two servers."""

    name: str
    client: httpx.Client
    path: str


def open_version(where: str, flags: list[str], stack: contextlib.ExitStack) -> Version:
    """Connect to a server, or start one from a source tree; it ends with ``stack``."""
    if where.startswith(("http://", "https://")):
        parts = urlsplit(where)
        client = stack.enter_context(connect(f"{parts.scheme}://{parts.netloc}"))
        path = parts.path.rstrip("/").removesuffix(":predict")
        if not path:
            path = f"/v1/models/{client.get('/v1/models').raise_for_status().json()['models'][0]}"
        return Version(where, client, path)
    tree = Path(where).resolve()
    check_tree(tree)
    server = stack.enter_context(Server(*flags, tree=tree))
    path = server.wait_until_ready()
    return Version(f"{where} ({commit_of(tree)})", server.client, path)


def check_tree(tree: Path) -> None:
    """Make sure that a server of this tree runs this tree's code.

    Raises:
        SystemExit: it would run other code.
    """
    code = "import gptj_predictor; print(gptj_predictor.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tree),
        capture_output=True,
        text=True,
        check=False,
    )
    if not Path(done.stdout.strip()).is_relative_to(tree / "src"):
        raise SystemExit(f"{tree} would run {done.stdout.strip() or done.stderr.strip()}")


def commit_of(tree: Path) -> str:
    """The tree's commit, or that it has none."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"


def measure_pair(
    versions: tuple[Version, Version], prompts: list[str], new_tokens: int, number: int
) -> Pair:
    """One request to both, B first if ``number`` is odd."""
    answers = {}
    for version in versions if number % 2 == 0 else reversed(versions):
        time.sleep(PAUSE)
        answers[version.name] = predict(
            version.client, version.path, prompts, new_tokens, temperature=0, seed=number
        )
    (texts_a, a), (texts_b, b) = (answers[version.name] for version in versions)
    return Pair(len(prompts), a, b, texts_a == texts_b)


def interval(ratios: list[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median, by the percentile bootstrap."""
    found = bootstrap(
        (np.array(ratios),),
        np.median,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def summarize(pairs: list[Pair], new_tokens: int) -> tuple[str, float]:
    """One batch size's line of the table, and the upper end of its interval."""
    a, b = (
        statistics.median(seconds) * 1000 / new_tokens
        for seconds in zip(*((pair.a, pair.b) for pair in pairs), strict=True)
    )
    ratios = [pair.ratio for pair in pairs]
    low, high = interval(ratios)
    differ = sum(not pair.same_texts for pair in pairs)
    line = (
        f"{pairs[0].batch:5} {len(pairs):5} {a:11.3f} {b:11.3f} {statistics.median(ratios):6.3f}  "
        f"{low:.3f} to {high:.3f}  {f'{differ} pairs differ' if differ else 'the same'}"
    )
    return line, high


HEAD = f"{'batch':>5} {'pairs':>5} {'A, ms/token':>11} {'B, ms/token':>11} {'B/A':>6}  "
HEAD += f"{'95 % interval':14}  texts"


def main() -> None:
    """Measure what the command line asks for."""
    arguments = parse()
    flags = ["--model", str(arguments.model), "--precision", arguments.precision]
    if arguments.threads is not None:
        flags += ["--threads", str(arguments.threads)]
    flags += arguments.flags
    prompts = Prompts(Tokenizer(arguments.model), arguments.prompt_tokens, arguments.seed)
    pairs: dict[int, list[Pair]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        first = open_version(arguments.a, flags, stack)
        second = open_version(arguments.b, flags, stack)
        # The same tree or address twice still makes two versions.
        versions = (
            Version(f"A: {first.name}", first.client, first.path),
            Version(f"B: {second.name}", second.client, second.path),
        )
        print(f"{versions[0].name}\n{versions[1].name}", flush=True)
        for number in range(-WARMUP_PAIRS, arguments.pairs):
            for batch in arguments.batch:
                texts = [prompts.cut(batch, number, row).text for row in range(batch)]
                pair = measure_pair(versions, texts, arguments.new_tokens, abs(number))
                if number >= 0:
                    pairs[batch].append(pair)
    if arguments.output is not None:
        content = {
            "settings": vars(arguments),
            "versions": [version.name for version in versions],
            "pairs": [asdict(pair) for measured in pairs.values() for pair in measured],
        }
        arguments.output.write_text(json.dumps(content, indent=1, default=str) + "\n")
    raise SystemExit(report(pairs, arguments))


def report(pairs: dict[int, list[Pair]], arguments: argparse.Namespace) -> int:
    """Print the table and what is wrong; return the exit code."""
    problems = []
    print(HEAD)
    for batch, measured in pairs.items():
        text, high = summarize(measured, arguments.new_tokens)
        print(text)
        if high > arguments.max_ratio:
            problems.append(f"batch {batch}: the interval ends above {arguments.max_ratio:g}")
        if not (arguments.texts_may_differ or all(pair.same_texts for pair in measured)):
            problems.append(f"batch {batch}: texts differ")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("a", metavar="A", help="source tree or URL of the older version")
    add("b", metavar="B", help="source tree or URL of the newer version")
    add("--model", type=Path, default=DEMO_SNAPSHOT, help="snapshot of both; default: the demo")
    add("--batch", type=int, nargs="+", default=[1, 8], help="prompts in a request")
    add("--prompt-tokens", type=int, default=32)
    add("--new-tokens", type=int, default=32)
    add("--pairs", type=int, default=30, help="for each batch size, at least 2")
    add("--seed", type=int, default=0, help="decides the prompts")
    add("--max-ratio", type=float, default=1.03, help="of the interval's upper end")
    add("--texts-may-differ", action="store_true", help="count other texts, do not fail")
    add("--threads", type=int, help="of each started server")
    add("--precision", default="native", help="of each started server")
    add("--output", type=Path, help="JSON file for every pair")
    add("--flags", nargs=argparse.REMAINDER, default=[], help="of each started server; comes last")
    arguments = parser.parse_args()
    if arguments.pairs < 2:
        parser.error("--pairs must be at least 2")
    return arguments


if __name__ == "__main__":
    main()
