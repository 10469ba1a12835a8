"""What the machine, or the container on it, lets this process use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes that this process can still take, by the machine and by its cgroup (v2)."""
    free = psutil.virtual_memory().available
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return free
    return max(0, min(free, limit - used))


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    """CPUs that this process can keep busy: cores by affinity, time by its cgroup (v2 or v1).

    A container with a limit of two CPUs still sees all of the host's; a thread on each of them
    would have most of them stopped at any time.
    """
    cpus = len(os.sched_getaffinity(0))
    quota = _quota(cgroup / "cpu.max") or _quota(
        cgroup / "cpu" / "cpu.cfs_quota_us", cgroup / "cpu" / "cpu.cfs_period_us"
    )
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _quota(*files: Path) -> float | None:
    """CPU time per time; the files hold a quota and its period in microseconds."""
    try:
        quota, period = (int(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):  # not this version of cgroups, or no limit ("max")
        return None
    return quota / period if quota > 0 else None
