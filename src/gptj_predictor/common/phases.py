"""How long each phase of a start takes."""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Phase(enum.StrEnum):
    """What a server does before it is ready, in order."""

    IMPORTS = "imports"  # Python's start and its modules, torch among them
    SNAPSHOT_WAIT = "snapshot_wait"  # finds the snapshot; another pod may still be pulling it
    TOKENIZER = "tokenizer"
    WEIGHTS_READ = "weights_read"  # from the volume or the page cache, with the digests
    WEIGHTS_TO_DEVICE = "weights_to_device"  # casts, copies and packs what has been read
    KV_CACHE = "kv_cache"  # measures and allocates it
    CUDA_GRAPHS = "cuda_graphs"  # captures them, if any, and starts the engine's thread


class Phases:
    """A stopwatch; one thread at a time may measure."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(Phase, 0.0)
        self._total = 0.0

    @property
    def seconds(self) -> dict[Phase, float]:
        """What each phase took so far; 0 for one that has not ended."""
        return dict(self._seconds)

    @property
    def total(self) -> float:
        """Seconds from the start of the process to :meth:`finish`; 0 before."""
        return self._total

    def add(self, phase: Phase, seconds: float) -> None:
        """Add what was measured elsewhere."""
        self._seconds[phase] += seconds

    @contextmanager
    def measure(self, phase: Phase) -> Iterator[None]:
        """Add the time that a block takes, however it ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - started)

    def finish(self) -> None:
        """The model is ready now."""
        self._total = process_seconds()

    def __str__(self) -> str:
        """All phases for the log, and the rest of the whole: ``imports 2.10 s, ...``."""
        rest = self._total - sum(self._seconds.values())
        parts = [f"{phase} {took:.2f} s" for phase, took in self._seconds.items()]
        return ", ".join([*parts, f"rest {rest:.2f} s"])


def process_seconds() -> float:
    """Seconds since this process was started, by the kernel's clock, which counts in 10 ms."""
    # The fields behind the name, which may itself hold spaces; see proc(5).
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
