"""Many servers in a row at little cost: each is forked from a process that has its imports done.

What a fork runs is the program from its first line on, in a process of its own, with the code that
the real one would import. So its start takes a moment instead of seconds.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from gptj_predictor.__main__ import main
from tests.support.servers import catches, environment, free_port, wait_for


class ForkedServer:
    """A server that :class:`ServerForks` started."""

    def __init__(self, forks: ServerForks, pid: int, port: int, log: Path) -> None:
        self._forks = forks
        self._log = log
        self.pid = pid
        self.port = port

    @property
    def log(self) -> str:
        """Everything it has printed so far."""
        return self._log.read_text()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Its exit code.

        Raises:
            TimeoutError: it has not ended by then; it is killed.
        """
        deadline = time.monotonic() + timeout
        while (code := self._forks.ask("code", pid=self.pid)["code"]) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(self.log)
            time.sleep(0.01)
        return int(code)


class ServerForks:
    """A process that starts servers."""

    def __init__(self, folder: Path) -> None:
        """Logs go to a folder."""
        self._folder = folder
        self._count = 0
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.support.forked_servers import fork; fork()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def start(self, *flags: object) -> ForkedServer:
        """``gptj-predictor serve`` with the given flags, as soon as it can take a signal."""
        self._count += 1
        port, log = free_port(), self._folder / f"server-{self._count}.log"
        log.touch()
        ports = ["--http_port", port, "--enable_grpc", "false"]
        arguments = ["serve", *map(str, [*flags, *ports])]
        pid = self.ask("start", arguments=arguments, log=str(log))["pid"]
        wait_for(lambda: catches(pid, signal.SIGTERM))
        return ForkedServer(self, pid, port, log)

    def ask(self, what: str, **details: object) -> dict[str, Any]:
        """Send a line and read one; callable from any thread."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps({"what": what, **details}) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def fork() -> None:
    """Import what a server needs, then do what the lines on standard input say."""
    for module in ("launch", "server.generation", "server.kserve_flags", "server.process"):
        importlib.import_module(f"gptj_predictor.{module}")
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, int | None]
        if order["what"] == "start":
            pid = os.fork()
            if pid == 0:
                _serve(order["arguments"], order["log"])
            answer = {"pid": pid}
        else:
            pid, status = os.waitpid(order["pid"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        print(json.dumps(answer), flush=True)


def _serve(arguments: list[str], log: str) -> NoReturn:
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = ["gptj-predictor", *arguments]
    main()
