"""Who computes on a CPU: the engine's thread and its workers, and no one else that stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gptj_predictor.model.linear import can_multiply_int8
from tests.support.servers import environment

#: A start as the server's; the plan is made in the main thread, which serves later.
PROGRAM = """
import os, queue, sys, threading, time
from dataclasses import replace

import torch

from gptj_predictor.common.threads import alone
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.launch import LaunchPlan
from gptj_predictor.settings import ServerSettings
from tests.support.engines import GREEDY


def workers():
    return len(os.listdir("/proc/self/task")) - threading.active_count()


def more_workers(than, wanted):
    # A thread's workers end a moment after it.
    end = time.monotonic() + 10
    while workers() - than != wanted and time.monotonic() < end:
        time.sleep(0.01)
    return workers() - than


torch.set_num_threads(3)  # makes threads of its own, which wait for quantized mobile models
before = workers()
settings = ServerSettings(device="cpu", threads=3, quantization=sys.argv[1])
plan = LaunchPlan.prepare(DEMO_SNAPSHOT, settings)
print(more_workers(before, 0))
engine = alone(plan.start_engine)
print(more_workers(before, 0))
events = queue.SimpleQueue()
# A prompt is large enough to be shared.
engine.submit(list(range(500)), replace(GREEDY, max_length=510), events.put)
while events.get(timeout=60).finish_reason is None:
    pass
print(more_workers(before, 2))
engine.stop()
"""


@pytest.mark.parametrize(
    "quantization",
    [
        "none",
        pytest.param(
            "int8",
            marks=pytest.mark.skipif(not can_multiply_int8(), reason="the CPU has no VNNI"),
        ),
    ],
)
def test_only_the_engine_has_workers(quantization: str) -> None:
    """More workers than CPUs make each other wait, see ``common.threads.alone``."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, quantization],
        capture_output=True,
        text=True,
        env=environment(OMP_NUM_THREADS="3"),
        timeout=120,
        check=False,
    )
    assert found.stdout.split() == ["0", "0", "2"], found.stderr
