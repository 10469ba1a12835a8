"""Work in a thread that does not keep the process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_daemon_thread(work: Callable[[], Result], name: str) -> Future[Result]:
    """Start work in a daemon thread of its own.

    The process may end while it runs; a thread of a ``ThreadPoolExecutor`` would be waited for.

    Args:
        work: What to do.
        name: Of the thread, for logs and debuggers.

    Returns:
        What the work will return or raise. It cannot be cancelled: the work always runs to its end.
        In a coroutine, await ``asyncio.wrap_future`` of it; its loop may be closed by the end of
        the work.
    """
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def alone(work: Callable[[], Result]) -> Result:
    """Call it in a thread of its own and return what it returns.

    OpenMP gives every thread that computes its own workers, which live as long as the thread. With
    more workers than CPUs, workers sleep between two operations and wake up late: a decode step on
    two CPUs then takes twice as long. So no thread that stays, but the engine's, may compute. A
    signal to the caller does not wait for the work.
    """
    return in_daemon_thread(work, "alone").result()
