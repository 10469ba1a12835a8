"""What the machine, or the container on it, lets this process use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import psutil

from gptj_predictor.devices.cgroups import Group, groups


def free_memory(root: Path | None = None) -> int:
    """Bytes that this process can still take, by the machine and by its cgroups (v1 and v2).

    Args:
        root: What to take for ``/`` where cgroups are looked up, if not that.
    """
    rooms = [_room(group) for group in groups("memory", root)]
    free = psutil.virtual_memory().available
    return max(0, min([free, *(room for room in rooms if room is not None)]))


def _room(group: Group) -> int | None:
    """Bytes to a group's limit; ``None`` if it has none.

    The page cache of files counts as use, but the kernel takes it back before it kills a process.
    So files that were read are room again. Files that are mapped, such as torch's libraries, are
    not: the process would have to read them again and again.
    """
    limit_file, used_file, prefix, mapped = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_", "total_mapped_file")
        if group.version == 1
        else ("memory.max", "memory.current", "", "file_mapped")
    )
    limit, used = group.number(limit_file), group.number(used_file)
    if limit is None or used is None:
        return None
    stat = group.numbers("memory.stat")
    if group.version == 1:
        # The limits of groups above, which may be out of sight. Without a limit the number is so
        # large that the machine's memory decides.
        limit = min(limit, stat.get("hierarchical_memory_limit", limit))
    cached = stat.get(f"{prefix}active_file", 0) + stat.get(f"{prefix}inactive_file", 0)
    return limit - used + max(0, cached - stat.get(mapped, 0))


def usable_cpus(root: Path | None = None) -> int:
    """CPUs that this process can keep busy: cores by affinity, time by its cgroups (v1 and v2).

    A container with a limit of two CPUs still sees all of the host's; a thread on each of them
    would have most of them stopped at any time.

    Args:
        root: What to take for ``/`` where cgroups are looked up, if not that.
    """
    cpus = len(os.sched_getaffinity(0))
    quotas = [_quota(group) for group in groups("cpu", root)]
    return max(1, min([cpus, *(math.ceil(quota) for quota in quotas if quota is not None)]))


def _quota(group: Group) -> float | None:
    """CPU time per time; the files hold a quota and its period in microseconds."""
    names = ["cpu.cfs_quota_us", "cpu.cfs_period_us"] if group.version == 1 else ["cpu.max"]
    try:
        quota, period = (int(word) for n in names for word in (group.path / n).read_text().split())
    except (OSError, ValueError):  # no limit ("max"), or a group without this controller
        return None
    return quota / period if quota > 0 else None
