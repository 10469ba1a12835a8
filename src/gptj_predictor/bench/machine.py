"""What this machine is, and how fast it reads its memory.

``benchmarks/`` uses this on machines that have torch and little else, so this imports torch and
:mod:`gptj_predictor.common` only.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

import torch

from gptj_predictor.common.threads import alone

PACKAGES = ("gptj-predictor", "torch", "triton", "transformers", "numpy")

#: What nvidia-smi is asked for; its ``--help-query-gpu`` explains them.
CLOCKS = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "pstate",
    "power.limit",
    "temperature.gpu",
)

#: Bytes of the buffers that are read: far beyond a processor's cache, little beside the weights.
GPU_BUFFER = 2**30
CPU_BUFFER = 2**29
REPEATS = 5


def cpu_name() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return re.sub(r"\s+", " ", value.strip())
    return platform.machine()


def ask_nvidia_smi(uuid: str) -> dict[str, str]:
    """``driver_version`` and :data:`CLOCKS` of one GPU; empty if nvidia-smi cannot tell.

    Args:
        uuid: Of the GPU, with or without ``GPU-``.
    """
    program = shutil.which("nvidia-smi")
    if program is None or not uuid:
        return {}
    wanted = ("driver_version", *CLOCKS)
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and nothing of the user's
            [
                program,
                f"--id=GPU-{uuid.removeprefix('GPU-')}",
                f"--query-gpu={','.join(wanted)}",
                "--format=csv",
            ],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        values = next(csv.reader(done.stdout.splitlines()[1:], skipinitialspace=True))
        return dict(zip(wanted, values, strict=True))
    except (OSError, subprocess.SubprocessError, StopIteration, ValueError):
        return {}


def versions(*more: str) -> dict[str, str]:
    """Versions of Python, CUDA, the packages that matter here, and more if they are installed."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *more):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def utc_now() -> str:
    """The time in UTC, to the second, as ``2026-01-31T12:00:00Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def measure_bandwidth(device: torch.device, threads: int) -> float:
    """Bytes per second that a device's memory gives, the best of :data:`REPEATS` tries.

    On a GPU it is a copy within its memory. Bytes that are read and bytes that are written both
    count, as in STREAM's Copy (McCalpin, 1995). On a CPU it is a sum, which only reads.

    Args:
        device: A GPU or the CPU.
        threads: That read, on a CPU.
    """
    if device.type == "cuda":
        return _copy_rate(device)
    return alone(lambda: _read_rate(threads))


def _copy_rate(device: torch.device) -> float:
    size = min(GPU_BUFFER, torch.cuda.mem_get_info(device)[0] // 8)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    with torch.cuda.device(device):
        for _ in range(REPEATS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(REPEATS):  # one launch would be measured with it
                target.copy_(source)
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1000 / REPEATS)
        del source, target
        torch.cuda.empty_cache()  # the KV cache takes what is free
    return 2 * size / min(seconds)


def _read_rate(threads: int) -> float:
    torch.set_num_threads(threads)
    data = torch.ones(CPU_BUFFER // 4)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.sum(data)
        seconds.append(time.perf_counter() - started)
    return data.nbytes / min(seconds)
