"""A ``gptj-predictor serve`` process for the scripts beside this file."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

#: Seconds for a server to end after SIGTERM.
STOP_SECONDS = 60
CONNECT_SECONDS = 10


class Server:
    """A server process on a free port. It starts with the ``with`` block and ends with it.

    Args:
        flags: Of ``gptj-predictor serve``.
        tree: Root of a source tree to run; ``None`` for the package of this interpreter.
        program: Starts the server otherwise.
        variables: More of the environment.
    """

    def __init__(
        self,
        *flags: object,
        tree: Path | None = None,
        program: str | None = None,
        **variables: str,
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        start = ["-m", "gptj_predictor"] if program is None else ["-c", program]
        self._command = [sys.executable, *start, "serve", "--enable_grpc", "false"]
        self._command += ["--http_port", str(port), *map(str, flags)]
        self._environment = environment(tree) | variables
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        log = self._stack.enter_context(tempfile.NamedTemporaryFile("w+"))
        self._log = Path(log.name)
        self.client = self._stack.enter_context(connect(self.url))
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            self._command, stdout=log, stderr=subprocess.STDOUT, env=self._environment
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stack.close()

    @property
    def age(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self.started

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self._log.read_text()

    def wait_for(self, path: str) -> httpx.Response:
        """Wait until a path answers 200.

        Raises:
            SystemExit: the server ended; with the last lines of its log.
        """
        while self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                response = self.client.get(path)
                if response.is_success:
                    return response
            time.sleep(0.02)
        raise SystemExit("the server ended:\n" + "\n".join(self.log.splitlines()[-5:]))

    def wait_until_ready(self) -> str:
        """Wait until the model is loaded, and return its path, ``/v1/models/NAME``."""
        path = f"/v1/models/{self.wait_for('/v1/models').json()['models'][0]}"
        self.wait_for(path)
        return path


def free_port() -> int:
    """A port that nothing listens on, below those that the system gives to clients."""
    while True:
        port = random.randrange(10_000, 32_000)  # noqa: S311 - no secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def connect(url: str) -> httpx.Client:
    """A client that waits for a response as long as it takes."""
    return httpx.Client(base_url=url, timeout=httpx.Timeout(None, connect=CONNECT_SECONDS))


def environment(tree: Path | None = None) -> dict[str, str]:
    """This process's environment without settings of the server; ``tree``'s code if given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GPTJ_", "KSERVE_"))}
    return kept if tree is None else kept | {"PYTHONPATH": str(tree.resolve() / "src")}


def predict(
    client: httpx.Client, path: str, prompts: list[str], new_tokens: int, **parameters: Any
) -> tuple[list[str], float]:
    """Have exactly ``new_tokens`` tokens generated after every prompt.

    Returns:
        The new texts, and the seconds until the response was there.
    """
    lengths = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    body = {"instances": prompts, "parameters": lengths | {"return_full_text": False} | parameters}
    started = time.perf_counter()
    response = client.post(f"{path}:predict", json=body)
    seconds = time.perf_counter() - started
    if not response.is_success:
        raise SystemExit(f"{response.url} answers {response.status_code}: {response.text}")
    predictions = response.json()["predictions"]
    rows = [predictions] if len(prompts) == 1 else predictions
    return [row[0]["generated_text"] for row in rows], seconds
