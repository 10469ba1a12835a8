"""A real server process on a real port."""

from __future__ import annotations

import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

NAME = "eleutherai-gpt-j-6b"

READY_PATHS = (
    f"/v1/models/{NAME}",
    f"/v2/models/{NAME}/ready",
    "/v2/health/ready",
    "/health",
)
LIVE_PATHS = ("/", "/v2/health/live")

#: How long the tests' ``hasty`` server gives a request to arrive.
HASTY_SECONDS = 1

#: A server that loads only once a file appears, whose path is in the environment.
HELD = """
import os, time
from gptj_predictor.launch import LaunchPlan

start = LaunchPlan.start_engine

def held(plan):
    while not os.path.exists(os.environ["RELEASE"]):
        time.sleep(0.01)
    return start(plan)

LaunchPlan.start_engine = held
from gptj_predictor.__main__ import main
main()
"""

#: A server whose streams say often that they live.
TALKATIVE = """
from gptj_predictor.server import event_stream
event_stream.KEEP_ALIVE_SECONDS = 0.1
from gptj_predictor.__main__ import main
main()
"""

#: A server that never gets done with loading, in torch.
ENDLESS = """
import torch
from gptj_predictor.launch import LaunchPlan

def endless(plan):
    while True:
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)

LaunchPlan.start_engine = endless
from gptj_predictor.__main__ import main
main()
"""


def wait_for(condition: Callable[[], bool], timeout: float = 60) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: it was not in ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def free_port() -> int:
    """A port that nothing listens on, below those that the system gives to clients.

    One of those might be a client's by the time that a server binds it.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


def command(*flags: str, program: str | None = None) -> list[str]:
    """``gptj-predictor serve``, or a program that starts it otherwise."""
    start = ["-m", "gptj_predictor"] if program is None else ["-c", program]
    return [sys.executable, *start, "serve", *flags]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without anything that would set the server up."""
    foreign = ("GPTJ_", "KSERVE_", "OTEL_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    # Threads that share cores with other tests wait for each other, spinning.
    return inherited | {"OMP_NUM_THREADS": "1", "GPTJ_THREADS": "1"} | extra


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    [line] = [
        line
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigCgt:")
    ]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


class RunningServer:
    """``gptj-predictor serve`` with the given flags; ended with SIGTERM."""

    def __init__(
        self,
        *flags: str,
        grpc: bool = False,
        program: str | None = None,
        log: str | None = None,
        **extra_environment: str,
    ) -> None:
        """Start it; what it prints goes to ``log``, or to a file of its own."""
        self.port = free_port()
        self.grpc_port = free_port()
        self._log = tempfile.NamedTemporaryFile("r", suffix=".log")  # noqa: SIM115
        ports = ["--http_port", str(self.port), "--grpc_port", str(self.grpc_port)]
        with Path(log or self._log.name).open("w") as output:
            self.process = subprocess.Popen(
                command("--enable_grpc", str(grpc).lower(), *flags, *ports, program=program),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(**extra_environment),
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.stop()
        self._log.close()

    @property
    def log(self) -> str:
        """Everything it has printed so far."""
        return Path(self._log.name).read_text()

    @property
    def predict_path(self) -> str:
        return f"/v1/models/{NAME}:predict"

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 60) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def wait_until(self, path: str, status: int, timeout: float = 120) -> None:
        """Wait for an answer with a status."""

        def answers() -> bool:
            assert self.process.poll() is None, self.log
            try:
                return self.client.get(path).status_code == status
            except httpx.TransportError:
                return False

        try:
            wait_for(answers, timeout)
        except TimeoutError:
            raise TimeoutError(f"{path} did not answer {status}: {self.log}") from None

    def wait_until_ready(self) -> None:
        self.wait_until(f"/v1/models/{NAME}", 200)

    def post(self, body: bytes | str, path: str | None = None, **options: Any) -> httpx.Response:
        """As ``curl -d`` does it: with no Content-Type of its own but a form's."""
        headers = {"content-type": "application/x-www-form-urlencoded"}
        headers |= options.pop("headers", {})
        content = body.encode() if isinstance(body, str) else body
        return self.client.post(
            path or self.predict_path, content=content, headers=headers, **options
        )

    def predict(self, instances: list[str], **parameters: object) -> Any:
        """Predictions of a request that must succeed."""
        response = self.client.post(
            self.predict_path, json={"instances": instances, "parameters": parameters}
        )
        assert response.status_code == 200, response.text
        return response.json()["predictions"]


class HttpsServer(RunningServer):
    """The same with TLS flags."""

    def __init__(self, trusted: ssl.SSLContext, *flags: str, **options: Any) -> None:
        """Start it.

        Args:
            trusted: What a client knows that trusts the server's certificate.
            flags: Of the command; those for TLS among them.
            options: See :class:`RunningServer`.
        """
        super().__init__(*flags, **options)
        self.trusted = trusted
        self.client.close()
        address = f"https://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=address, timeout=120, verify=trusted)
