"""Who computes on a CPU: the engine's thread and its workers, and no one else that stays."""

from __future__ import annotations

import subprocess
import sys

from gptj_predictor.demo import DEMO_SNAPSHOT
from tests.support.servers import environment

#: Everything is called from the main thread, as a library's user does.
PROGRAM = """
import os, sys, threading, time
from dataclasses import replace
from pathlib import Path

import torch

from gptj_predictor.common.threads import alone
from tests.support.engines import GREEDY, RunningEngine, load


def workers():
    return len(os.listdir("/proc/self/task")) - threading.active_count()


def more_workers(than, wanted):
    # A thread's workers end a moment after it.
    end = time.monotonic() + 10
    while workers() - than != wanted and time.monotonic() < end:
        time.sleep(0.01)
    return workers() - than


torch.set_num_threads(3)
before = workers()
network = alone(lambda: load(Path(sys.argv[1])))
running = RunningEngine(network)
print(more_workers(before, 0))
with running:
    running.submit(list(range(500)), replace(GREEDY, max_length=510)).result()
    print(more_workers(before, 2))
"""


def test_only_the_engine_has_workers() -> None:
    """More workers than CPUs make each other wait, see ``common.threads.alone``."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(DEMO_SNAPSHOT)],
        capture_output=True,
        text=True,
        env=environment(OMP_NUM_THREADS="3"),
        timeout=120,
        check=False,
    )
    assert found.stdout.split() == ["0", "2"], found.stderr
