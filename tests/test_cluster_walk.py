"""What the cluster suite's pods do, as processes here: hub, pull, server, load, damage."""

from __future__ import annotations

import contextlib
import json
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

from tests.support.charts import Object, render
from tests.support.cluster import objects
from tests.support.cluster.ask import ask
from tests.support.cluster.damage import damage
from tests.support.cluster.load import Asked, Load, Summary, summarize
from tests.support.cluster.made_up import made_up_settings
from tests.support.cluster.programs import load_json
from tests.support.cluster.reading import metric
from tests.support.cluster.values import FETCHED, MODEL_NAME, values_for
from tests.support.servers import RunningServer, environment, free_port


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """The suite's ConfigMap as a pod sees it: files, and nothing else of the tests."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name, text in objects.scripts()["data"].items():
        (folder / name).write_text(text)
    return folder


@contextlib.contextmanager
def hub_process(scripts: Path) -> Iterator[str]:
    """The hub's pod; its address. Only host and ports are this machine's."""
    [container] = objects.hub_objects(made_up_settings())[0]["spec"]["template"]["spec"][
        "containers"
    ]
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


def pull(change: str, cache: Path, hub: str) -> subprocess.CompletedProcess[str]:
    """The pull Job of a values file."""
    release = render(values_for(made_up_settings(), "standard", change), name="gptj")
    [container] = release.one("Job", "-pull-")["spec"]["template"]["spec"]["containers"]
    return subprocess.run(
        [sys.executable, "-m", "gptj_predictor", *container["args"], "--dest", str(cache)],
        env=environment(HF_ENDPOINT=hub, HF_HOME=str(cache.parent / "hf")),
        capture_output=True,
        text=True,
        check=False,
    )


def predictor(change: str) -> Object:
    return render(values_for(made_up_settings(), "standard", change), name="gptj").container


@pytest.mark.process
def test_from_the_hub_to_a_load(scripts: Path, tmp_path: Path) -> None:
    """Hub, pull, server and load with the very files and arguments that the pods get."""
    cache = tmp_path / "cache"
    cache.mkdir()
    with hub_process(scripts) as hub:
        done = pull("as it is", cache, hub)
        assert done.returncode == 0, done.stderr
        assert "-bfloat16" in done.stdout
        assert FETCHED in done.stderr
        again = pull("as it is", cache, hub)
        assert again.returncode == 0
        assert FETCHED not in again.stderr
        gated = pull("gated", cache, hub)
        assert gated.returncode == 1
        assert "gated" in gated.stderr
    arguments = predictor("as it is")["args"]
    with RunningServer(*arguments[1:], "--cache", str(cache)) as server:
        server.wait_until_ready()
        address = f"http://127.0.0.1:{server.port}"
        [(labels, _)] = metric(str(ask(f"{address}/metrics")["body"]), "gptj_model_info")
        assert labels["precision"] == "bfloat16"
        told = run_load(scripts, "--url", address, "--callers", "3", "--requests", "2")
        assert (told["answered"], told["failed"]) == (6, {})
        details = json.dumps({"max_new_tokens": 4, "details": True})
        told = run_load(
            *(scripts, "--url", address, "--callers", "1", "--requests", "1"),
            *("--instances", "3", "--parameters", details),
        )
        assert told["finish_reasons"] == {"length": 3}
        asked = subprocess.run(
            [sys.executable, scripts / "ask.py", f"{address}/v1/models/{MODEL_NAME}:predict", "{}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert load_json(asked.stdout)["status"] == 400


def run_load(scripts: Path, *flags: str) -> dict[str, Any]:
    """The load, as a pod runs it; its first answer is announced."""
    words = [sys.executable, str(scripts / "load.py"), "--model", MODEL_NAME, *flags]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("answered\n")
    return dict(load_json(done.stdout))


@pytest.mark.process
def test_another_precision(scripts: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with hub_process(scripts) as hub:
        assert pull("precision", cache, hub).returncode == 0
    arguments = predictor("precision")["args"]
    with RunningServer(*arguments[1:], "--cache", str(cache)) as server:
        server.wait_until_ready()
        text = str(ask(f"http://127.0.0.1:{server.port}/metrics")["body"])
        [(labels, _)] = metric(text, "gptj_model_info")
        assert labels["precision"] == "float16"


@pytest.mark.process
def test_damage_is_found_and_mended(scripts: Path, tmp_path: Path) -> None:
    """As the suite does it: one bit, a server that ends, another pull with ``--verify``."""
    cache = tmp_path / "cache"
    cache.mkdir()
    with hub_process(scripts) as hub:
        assert pull("damaged", cache, hub).returncode == 0
        [root] = [one for one in cache.iterdir() if one.is_dir()]
        [file] = damage(root)
        arguments = predictor("damaged")["args"]
        with RunningServer(*arguments[1:], "--cache", str(cache)) as server:
            assert server.process.wait(60) == 1
            assert file.name in server.log
        assert pull("mended", cache, hub).returncode == 0
    with RunningServer(*arguments[1:], "--cache", str(cache)) as server:
        server.wait_until("/v2/health/live", 200)
        server.wait_until(f"/v1/models/{objects.DAMAGED_ID.replace('/', '-')}", 200)


@pytest.mark.process
def test_the_crashing_values_crash() -> None:
    """The drain's test needs a pod that ends at once."""
    arguments = predictor("crashing")["args"]
    with RunningServer(*arguments[1:]) as server:
        assert server.process.wait(60) != 0


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
