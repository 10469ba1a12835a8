"""A function in a process of its own, and what the kernel says of a process's memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def run_in_new_process(function: Callable[..., Result], *arguments: object) -> tuple[Result, int]:
    """Call a function of a module in a new process.

    Returns:
        What it returns, and the peak of that process's resident memory in bytes, imports included.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_with_peak, function, *arguments).result()


def _with_peak(function: Callable[..., Result], *arguments: object) -> tuple[Result, int]:
    result = function(*arguments)
    return result, memory_bytes("self", "VmHWM")


def memory_bytes(process: int | str, field: str) -> int:
    """One line of ``/proc/PID/status``: ``VmHWM`` is the peak, ``RssAnon`` the anonymous part."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024
