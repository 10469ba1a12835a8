"""How long each phase of a start takes."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phase(enum.StrEnum):
    """What a server does before it is ready, in order."""

    SNAPSHOT_WAIT = "snapshot_wait"  # finds the snapshot; another pod may still be pulling it
    IMPORTS = "imports"  # Python's modules, torch among them
    TOKENIZER = "tokenizer"
    WEIGHTS = "weights"  # reads them into the devices' memory
    KV_CACHE = "kv_cache"  # measures and allocates it
    CUDA_GRAPHS = "cuda_graphs"  # captures them, if any, and starts the engine's thread


class Phases:
    """A stopwatch; one thread at a time may measure."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(Phase, 0.0)

    @property
    def seconds(self) -> dict[Phase, float]:
        """What each phase took so far; 0 for one that has not ended."""
        return dict(self._seconds)

    @contextmanager
    def measure(self, phase: Phase) -> Iterator[None]:
        """Add the time that a block takes, however it ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] += time.perf_counter() - started
