"""How long does a server take from its start to its first token, and how much memory?

    .venv/bin/python benchmarks/cold_start.py [--model FOLDER ...] [--rounds 5]
    git worktree add ../old COMMIT
    .venv/bin/python benchmarks/cold_start.py --trees ../old . --model FOLDER --cache warm cold

The table has, for each snapshot, state of the page cache and source tree, the medians of the
seconds from the start of the process until it answers, until the model is ready and until the first
token is there, then what the log says of the imports and of the weights, and the resident memory.
The trees take turns, A B then B A, so that both see the same machine. ``cold`` drops the snapshot's
pages from the page cache before each start; Python's own files stay there. On a file system that
cannot drop them, as one in memory, it is an error.
"""

from __future__ import annotations

import argparse
import mmap
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import astuple, dataclass
from pathlib import Path

from processes import memory_bytes
from serving import Server, environment, predict

# tests/ is not installed, and lies beside this folder.
sys.path.append(str(Path(__file__).parents[1]))
from tests.support.page_cache import cached_bytes, drop_cached

ROOT = Path(__file__).parents[1]

#: Of a snapshot's bytes, how many may still be in the page cache after they were dropped.
STAYS = 0.02


@dataclass(frozen=True)
class Start:
    """One start: seconds, and bytes of resident memory."""

    alive: float
    ready: float
    first_token: float
    imports: float
    weights: float
    peak: float
    anonymous: float


#: What a server cannot do without, and all that it imports before it looks at a snapshot.
LIBRARIES = "import sys; sys.argv = sys.argv[:1]; import torch, kserve"
SERVER = """
from gptj_predictor.cli import build_parser
build_parser(["serve"])
import gptj_predictor.launch, gptj_predictor.server.process
"""

HEAD = f"{'snapshot':14} {'cache':5} {'tree':24} {'alive':>6} {'ready':>6} {'token':>6} "
HEAD += f"{'imports':>7} {'weights':>7} {'peak, GB':>8} {'anonymous':>9}"


def measure(tree: Path, model: list[str], flags: list[str]) -> Start:
    """Start a server, have one token made, and end it."""
    with Server(*model, *flags, tree=tree) as server:
        server.wait_for("/")
        alive = server.age
        path = server.wait_until_ready()
        ready = server.age
        predict(server.client, path, ["Right now is the perfect time to"], 1)
        first_token = server.age
        peak, anonymous = (
            memory_bytes(server.process.pid, field) / 1e9 for field in ("VmHWM", "RssAnon")
        )
        log = server.log
    return Start(
        alive, ready, first_token, _said(log, "imports"), _said(log, "weights"), peak, anonymous
    )


def _said(log: str, phase: str) -> float:
    """What the line of the start says of a phase; not a number for versions without the line."""
    line = re.search(r"after the process began: (.*)", log)
    if line is None:
        return float("nan")
    return sum(map(float, re.findall(rf"\b{phase}\w* ([\d.]+) s", line[1])))


def drop(folder: Path) -> None:
    """Take a snapshot's files out of the page cache.

    Raises:
        SystemExit: they stay there.
    """
    files = [file for file in folder.iterdir() if file.is_file() and file.stat().st_size]
    for file in files:
        drop_cached(file)
    size = sum(file.stat().st_size for file in files)
    if sum(map(cached_bytes, files)) > STAYS * size + len(files) * mmap.PAGESIZE:
        raise SystemExit(f"{folder}: its pages stay in memory; put it on a disk")


def warm(folder: Path) -> None:
    """Read a snapshot's files once."""
    for file in folder.iterdir():
        if file.is_file():
            with file.open("rb") as opened:
                while opened.read(1 << 24):
                    pass


def measure_imports(trees: list[Path], rounds: int) -> None:
    """Print how much longer a tree's server takes to import than torch and kserve do."""
    programs: dict[str, tuple[str, Path | None]] = {"torch and kserve": (LIBRARIES, None)}
    programs |= {f"server of {tree}": (SERVER, tree) for tree in trees}
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, (program, tree) in programs.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", program], env=environment(tree), check=True)
            seconds[name].append(time.perf_counter() - started)
    base = seconds["torch and kserve"]
    for name, taken in seconds.items():
        more = statistics.median(one - other for one, other in zip(taken, base, strict=True))
        print(f"imports, {name}: {statistics.median(taken):.2f} s, {more:.2f} s more", flush=True)


def main() -> None:
    """Run the measurements that the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", nargs="+", default=["demo"], help="snapshot folders, and 'demo' for the demo")
    add("--trees", nargs="+", type=Path, default=[ROOT], help="source trees; default: this one")
    add("--cache", nargs="+", default=["warm"], choices=["warm", "cold"], help="of the weights")
    add("--rounds", type=int, default=1, help="starts of each kind")
    add("--imports", type=int, default=0, help="how often to measure what importing takes alone")
    add("--flags", nargs=argparse.REMAINDER, default=[], help="of the server; comes last")
    arguments = parser.parse_args()
    if arguments.imports:
        measure_imports(arguments.trees, arguments.imports)
    print(HEAD, flush=True)
    for model in arguments.model:
        for cache in arguments.cache:
            starts: dict[Path, list[Start]] = defaultdict(list)
            for number in range(arguments.rounds):
                for tree in arguments.trees if number % 2 == 0 else reversed(arguments.trees):
                    demo = tree / "src" / "gptj_predictor" / "demo" / "snapshot"
                    (drop if cache == "cold" else warm)(demo if model == "demo" else Path(model))
                    flags = [] if model == "demo" else ["--model", model]
                    starts[tree].append(measure(tree, flags, arguments.flags))
            for tree in arguments.trees:
                print(row(Path(model).name, cache, str(tree), starts[tree]), flush=True)


def row(model: str, cache: str, tree: str, starts: list[Start]) -> str:
    """One line of the table: the medians."""
    values = [statistics.median(column) for column in zip(*map(astuple, starts), strict=True)]
    alive, ready, token, imports, weights, peak, anonymous = values
    return (
        f"{model[:14]:14} {cache:5} {tree[-24:]:24} {alive:6.2f} {ready:6.2f} {token:6.2f} "
        f"{imports:7.2f} {weights:7.2f} {peak:8.2f} {anonymous:9.2f}"
    )


if __name__ == "__main__":
    main()
