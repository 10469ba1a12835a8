"""Work in a daemon thread."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading

import pytest

from gptj_predictor.common.threads import in_daemon_thread
from tests.support.servers import environment


def test_result_and_error() -> None:
    assert in_daemon_thread(lambda: threading.current_thread().name, "mine").result(10) == "mine"
    with pytest.raises(ZeroDivisionError):
        in_daemon_thread(lambda: 1 // 0, "x").result(10)
    with pytest.raises(SystemExit):
        in_daemon_thread(lambda: sys.exit(3), "x").result(10)


def test_in_a_coroutine() -> None:
    async def run() -> int:
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(in_daemon_thread(lambda: 1 // 0, "x"))
        return await asyncio.wrap_future(in_daemon_thread(lambda: 3, "x"))

    assert asyncio.run(run()) == 3


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_loop_that_is_closed_before_the_work_ends(
    caplog: pytest.LogCaptureFixture, cancelled: bool
) -> None:
    """The work goes on to its end, and nobody complains."""
    go_on = threading.Event()
    future = in_daemon_thread(lambda: go_on.wait(10), "x")
    loop = asyncio.new_event_loop()
    wrapped = asyncio.wrap_future(future, loop=loop)
    if cancelled:
        wrapped.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    with caplog.at_level(logging.DEBUG):
        go_on.set()
        assert future.result(10)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(10)
    assert caplog.records == []


def test_the_process_does_not_wait_for_it() -> None:
    program = (
        "import threading; from gptj_predictor.common.threads import in_daemon_thread;"
        "in_daemon_thread(threading.Event().wait, 'forever')"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(), timeout=30, check=True)
