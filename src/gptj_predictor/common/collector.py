"""Python's garbage collector, kept off for a while."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def garbage_collector_off() -> Iterator[None]:
    """No collection within.

    What one frees may belong to CUDA, such as an event or a graph, and to free that while a stream
    is captured spoils the capture.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
