"""What the cluster suite's pods do, as processes here: hub, pull, server, load, damage."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.charts import Release, render
from tests.support.cluster import objects
from tests.support.cluster.ask import ask
from tests.support.cluster.damage import damage
from tests.support.cluster.load import Asked, Load, Summary, summarize
from tests.support.cluster.made_up import made_up_settings
from tests.support.cluster.programs import load_json
from tests.support.cluster.reading import metric
from tests.support.cluster.values import FETCHED, MODEL_NAME, values_for
from tests.support.forked_servers import ForkedServer, ServerForks
from tests.support.pulling import Pullers
from tests.support.servers import RunningServer, environment, free_port, wait_for


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite's ConfigMap as a pod sees it: files, and nothing else of the tests."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in objects.scripts()["data"].items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def hub(scripts: Path) -> Iterator[str]:
    """The hub's pod; its address. Only host and ports are this machine's."""
    deployment, _ = objects.hub_objects(made_up_settings())
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    words = [one.replace("/scripts", str(scripts)) for one in container["command"][1:]]
    words[words.index("--name") + 1] = "127.0.0.1"
    at = words.index("--ports")
    words[at + 1 : at + 3] = ports = [str(free_port()), str(free_port())]
    process = subprocess.Popen(
        [sys.executable, *words, "--listen", "127.0.0.1"],
        cwd=scripts,
        env=environment(PYTHONPATH=str(Path(__file__).parents[1] / "src")),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"serving {objects.MODEL_ID}, ")
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def pullers(hub: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pullers]:
    with Pullers(hub, tmp_path_factory.mktemp("pulls")) as running:
        yield running


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerForks]:
    with ServerForks(tmp_path_factory.mktemp("servers")) as running:
        yield running


def rendered(change: str) -> Release:
    return render(values_for(made_up_settings(), "standard", change), name="gptj")


def pull(pullers: Pullers, change: str, cache: Path) -> tuple[int, str]:
    """The pull Job of a values file: exit code and log."""
    [container] = rendered(change).one("Job", "-pull-")["spec"]["template"]["spec"]["containers"]
    done = pullers.start(*container["args"], "--dest", str(cache))
    return done.wait(), done.output


def start(forks: ServerForks, change: str, cache: Path) -> ForkedServer:
    """The predictor of a values file."""
    return forks.start(*rendered(change).container["args"][1:], "--cache", cache)


@contextlib.contextmanager
def serving(forks: ServerForks, change: str, cache: Path, name: str = MODEL_NAME) -> Iterator[str]:
    """The address of a predictor that is ready; it ends at once."""
    server = start(forks, change, cache)
    address = f"http://127.0.0.1:{server.port}"
    try:
        wait_for(lambda: ask(f"{address}/v1/models/{name}")["status"] == 200)
        yield address
    finally:
        server.send(signal.SIGKILL)  # how a pod ends is tested elsewhere
        server.wait(30)


def precision(address: str) -> str:
    [(labels, _)] = metric(str(ask(f"{address}/metrics")["body"]), "gptj_model_info")
    return labels["precision"]


@pytest.mark.process
def test_from_the_hub_to_a_load(
    scripts: Path, pullers: Pullers, forks: ServerForks, tmp_path: Path
) -> None:
    """Hub, pull, server and load with the very files and arguments that the pods get."""
    code, log = pull(pullers, "as it is", tmp_path)
    assert code == 0, log
    assert FETCHED in log
    code, log = pull(pullers, "as it is", tmp_path)
    assert code == 0, log
    assert FETCHED not in log
    with serving(forks, "as it is", tmp_path) as address:
        assert precision(address) == "bfloat16"
        told = run_load(scripts, "--url", address, "--callers", "3", "--requests", "2")
        assert (told["answered"], told["failed"]) == (6, {})
        details = json.dumps({"max_new_tokens": 4, "details": True})
        flags = ["--callers", "1", "--requests", "1", "--instances", "3", "--parameters", details]
        told = run_load(scripts, "--url", address, *flags)
        assert told["finish_reasons"] == {"length": 3}
        asked = subprocess.run(
            [sys.executable, scripts / "ask.py", f"{address}/v1/models/{MODEL_NAME}:predict", "{}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert load_json(asked.stdout)["status"] == 400


@pytest.mark.process
def test_a_gated_model_is_refused(pullers: Pullers, tmp_path: Path) -> None:
    code, log = pull(pullers, "gated", tmp_path)
    assert code == 1
    assert "needs a token" in log


@pytest.mark.process
def test_another_precision(pullers: Pullers, forks: ServerForks, tmp_path: Path) -> None:
    assert pull(pullers, "precision", tmp_path)[0] == 0
    with serving(forks, "precision", tmp_path) as address:
        assert precision(address) == "float16"


@pytest.mark.process
def test_damage_is_found_and_mended(pullers: Pullers, forks: ServerForks, tmp_path: Path) -> None:
    """As the suite does it: one bit, a server that ends, another pull with ``--verify``."""
    assert pull(pullers, "damaged", tmp_path)[0] == 0
    [root] = [one for one in tmp_path.iterdir() if one.is_dir()]
    files = damage(root)
    server = start(forks, "damaged", tmp_path)
    assert server.wait(60) == 1
    assert any(f"{file.name} is damaged" in server.log for file in files)
    assert pull(pullers, "mended", tmp_path)[0] == 0
    with serving(forks, "damaged", tmp_path, objects.DAMAGED_ID.replace("/", "-")) as address:
        assert precision(address) == "bfloat16"


@pytest.mark.process
def test_the_crashing_values_crash() -> None:
    """The drain's test needs a pod that ends at once."""
    with RunningServer(*rendered("crashing").container["args"][1:]) as server:
        assert server.process.wait(60) != 0


def run_load(scripts: Path, *flags: str) -> dict[str, Any]:
    """The load, as a pod runs it; its first answer is announced."""
    words = [sys.executable, str(scripts / "load.py"), "--model", MODEL_NAME, *flags]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("answered\n")
    return dict(load_json(done.stdout))


def test_damage_without_weights_is_nothing(tmp_path: Path) -> None:
    assert damage(tmp_path) == []


def test_summary() -> None:
    told = summarize(
        [
            Asked(0.0, 1.0, finish_reasons=("length", "shutdown")),
            Asked(0.5, 1.5, "503 stopping"),
            Asked(1.0, 4.0, finish_reasons=("length",)),
            Asked(1.5, 1.6, "503 stopping"),
        ]
    )
    reasons = {"length": 2, "shutdown": 1}
    assert told == Summary(2, {"503 stopping": 2}, 3.0, 3.0, 3.0, reasons, 4.0)
    assert json.loads(json.dumps(asdict(told)))["failed"] == {"503 stopping": 2}
    assert summarize([]) == Summary(0, {}, 0.0, 0.0, 0.0)
    assert summarize([Asked(0, 1, "x")]).seconds == 1


class Answers(BaseHTTPRequestHandler):
    """Answers with what the path asks for."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/hang-up":
            self.close_connection = True
            return
        body = b"{}" if self.path == "/empty" else b'{"predictions": [{"generated_text": "x"}]}'
        self.send_response(503 if self.path == "/503" else 200)
        self.send_header("Content-Length", str(len(body) + 9 * (self.path == "/broken")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def answers() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "failure"),
    [
        ("/503", "503 "),
        ("/hang-up", "RemoteDisconnected"),
        ("/empty", "ValueError: no predictions"),
        ("/broken", "IncompleteRead"),
    ],
)
def test_no_failure_is_missed(answers: str, path: str, failure: str) -> None:
    told = Load(f"{answers}{path}", {}).run(2, lambda: False, requests=1)
    assert told.answered == 0
    [(seen, count)] = told.failed.items()
    assert seen.startswith(failure)
    assert count == 2


def test_a_refused_connection_is_a_failure() -> None:
    told = Load(f"http://127.0.0.1:{free_port()}/", {}).run(1, lambda: False, requests=1)
    assert [one.startswith("ConnectionRefusedError") for one in told.failed] == [True]


def test_a_load_ends_when_it_is_told_to(answers: str) -> None:
    end = time.monotonic() + 0.2
    told = Load(f"{answers}/", {}).run(2, lambda: time.monotonic() > end)
    assert told.answered > 2
    assert told.failed == {}
