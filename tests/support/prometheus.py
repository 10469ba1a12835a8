"""A real Prometheus that scrapes a real server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest
import yaml

from tests.support.servers import free_port, wait_for

INSTALL = "apt-get install --no-install-recommends prometheus"


def program(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``; the test fails without it."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed: {INSTALL}")
    return path


def promtool(*arguments: str, stdin: str = "") -> str:
    """What ``promtool`` says, which must be content."""
    done = subprocess.run(
        [program("promtool"), *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class RunningPrometheus:
    """Scrapes a port of this machine once a second."""

    def __init__(self, folder: Path, port: int, labels: dict[str, str], rules: Any) -> None:
        """Write its files.

        Args:
            folder: An empty one.
            port: Of the server that it scrapes.
            labels: That what it scrapes gets, as from the Prometheus operator.
            rules: The content of a file of rules.
        """
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        target = {"targets": [f"127.0.0.1:{port}"], "labels": labels}
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "gptj", "static_configs": [target]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
        self.rules = folder / "rules.yaml"
        self._folder = folder
        self._address = f"127.0.0.1:{free_port()}"
        self._client = httpx.Client(base_url=f"http://{self._address}/api/v1", timeout=30)

    def __enter__(self) -> Self:
        command = [
            program("prometheus"),
            f"--config.file={self._folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self._address}",
        ]
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(30)

    def wait_for_scrapes(self, count: int) -> None:
        """Wait until it has scraped as often."""
        query = f"count_over_time(gptj_ready[1h]) >= {count}"

        def scraped() -> bool:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            try:
                is_up = self._client.get(f"http://{self._address}/-/ready").is_success
                return is_up and bool(self.query(query))
            except httpx.TransportError:
                return False

        wait_for(scraped)

    def query(self, expression: str) -> list[Any]:
        """The series that an expression has now."""
        answer = self._client.get("/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        return list(answer["data"]["result"])

    def alerts(self) -> dict[str, Any]:
        """Every alert of the rules by its name, once all were evaluated."""
        found: dict[str, Any] = {}

        def evaluated() -> bool:
            groups = self._client.get("/rules").json()["data"]["groups"]
            found.update({rule["name"]: rule for group in groups for rule in group["rules"]})
            return bool(found) and all(rule["health"] != "unknown" for rule in found.values())

        wait_for(evaluated)
        return found
