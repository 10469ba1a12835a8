"""What this machine is, and how fast it reads its memory."""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from gptj_predictor.bench.results import Device
from gptj_predictor.common.threads import in_daemon_thread

PACKAGES = ("gptj-predictor", "torch", "transformers", "numpy")

#: What is asked of nvidia-smi; its ``--help-query-gpu`` explains them.
CLOCKS = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "clocks.max.mem",
    "pstate",
    "power.limit",
    "temperature.gpu",
)

#: Sizes of the buffers that are read: far beyond a cache, and little beside the weights.
GPU_BUFFER = 2**30
CPU_BUFFER = 2**29
REPEATS = 5

Result = TypeVar("Result")


def alone(work: Callable[[], Result]) -> Result:
    """Do it in a thread of its own and return what it returns.

    OpenMP gives every thread that computes workers of its own, for as long as it lives; with more
    workers than CPUs they sleep between products instead of spinning. The engine's thread is to be
    the only one. A signal to the caller does not wait for the work.
    """
    return in_daemon_thread(work, "alone").result()


def describe(devices: tuple[torch.device, ...], threads: int) -> Device:
    """The devices that hold the model."""
    gpus = [device for device in devices if device.type == "cuda"]
    if not gpus:
        memory = psutil.virtual_memory().total
        return Device(type="cpu", names=[_cpu_name()], memory_bytes=memory, threads=threads)
    properties = [torch.cuda.get_device_properties(gpu) for gpu in gpus]
    first = properties[0]
    facts = _ask_nvidia_smi(str(getattr(first, "uuid", "")))
    return Device(
        type="cuda",
        names=[one.name for one in properties] + [_cpu_name()] * (len(devices) - len(gpus)),
        memory_bytes=sum(one.total_memory for one in properties),
        compute_capability=f"{first.major}.{first.minor}",
        driver=facts.pop("driver_version", None),
        clocks=facts or None,
        threads=threads if len(devices) > len(gpus) else None,
    )


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return re.sub(r"\s+", " ", value.strip())
    return platform.machine()


def _ask_nvidia_smi(uuid: str) -> dict[str, str]:
    """Driver and clocks of one GPU; nothing if nvidia-smi is not there or does not know."""
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


def versions() -> dict[str, str]:
    """Of Python, CUDA and the packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    return found


def utc_now() -> str:
    """The time, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def measure_bandwidth(device: torch.device, threads: int) -> float:
    """Bytes a second that a device's memory gives, the best of some tries.

    On a GPU a copy within its memory, whose bytes are read and written: each counts, as in STREAM's
    Copy (McCalpin, 1995). On a CPU a sum, which only reads, by so many threads.
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
