"""The server process: its start, its end, its probes and its other doors."""

from __future__ import annotations

import re
import signal
import threading
from functools import partial
from pathlib import Path

import httpx
import pytest

from gptj_predictor.common.phases import Phase
from gptj_predictor.settings import GenerationParameters
from tests.support.forked_servers import ForkedServer, ServerForks
from tests.support.servers import (
    ENDLESS,
    HELD,
    LIVE_PATHS,
    NAME,
    READY_PATHS,
    RunningServer,
    catches,
    wait_for,
)
from tests.support.sparse import write_sparse_snapshot

pytestmark = pytest.mark.process


def test_not_loaded_yet(tmp_path: Path) -> None:
    """Alive at once; not ready, and 503 with Retry-After, until the weights are loaded."""
    release = tmp_path / "release"
    with RunningServer("--precision", "native", program=HELD, RELEASE=str(release)) as server:
        server.wait_until("/", 200)
        for path in READY_PATHS:
            assert server.client.get(path).status_code == 503
        response = server.post('{"instances": ["a"]}')
        assert response.status_code == 503
        assert response.json() == {"error": f"Model with name {NAME} is not ready."}
        assert int(response.headers["retry-after"]) > 0
        assert "is ready" not in server.log
        for path in LIVE_PATHS:
            assert server.client.get(path).status_code == 200
        release.touch()
        server.wait_until_ready()
        for path in READY_PATHS:
            assert server.client.get(path).status_code == 200
        assert server.predict(["a"], max_new_tokens=1)
        assert server.stop() == 0
        assert "Traceback" not in server.log


def test_what_takes_long_to_import_is_not_imported() -> None:
    """A replica that is started from zero keeps its caller waiting; see docs/measurements.md."""
    with RunningServer(PYTHONPROFILEIMPORTTIME="1") as server:
        server.wait_until_ready()
        server.predict(["one", "two"], max_new_tokens=4)
        server.predict(["one, and the beginning of it is in the prefix cache"], max_new_tokens=2)
        imported = {line.split("|")[-1].strip() for line in server.log.splitlines()}
    assert {"torch", "kserve", "tokenizers", "gptj_predictor.engine.core"} <= imported
    heavy = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy")
    for name in (*heavy, "transformers", "accelerate"):
        assert name not in imported


def test_a_line_of_the_log_says_what_the_start_took(server: RunningServer) -> None:
    [line] = [line for line in server.log.splitlines() if " after the process began: " in line]
    found = re.fullmatch(r".* ready ([\d.]+) s after the process began: (.*)", line)
    assert found is not None
    total, parts = found.groups()
    seconds = {name: float(took) for name, took in re.findall(r"(\w+) ([\d.]+) s", parts)}
    assert list(seconds) == [*Phase, "rest"]
    assert sum(seconds.values()) == pytest.approx(float(total), abs=0.05)
    assert seconds["rest"] < 1
    assert seconds["imports"] > 0.3


def test_sigterm_while_loading() -> None:
    with RunningServer(program=ENDLESS) as server:
        server.wait_until("/", 200)
        assert server.stop() == 0
        assert "is ready" not in server.log
        assert "Traceback" not in server.log


def test_sigterm_while_importing() -> None:
    with RunningServer(grpc=True) as server:
        wait_for(lambda: catches(server.process.pid, signal.SIGTERM))
        assert server.stop() == 0
        assert "Traceback" not in server.log


def is_ready(server: ForkedServer) -> bool:
    return "is ready" in server.log


def test_signals_end_an_idle_server(tmp_path: Path) -> None:
    with ServerForks(tmp_path) as forks:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            server = forks.start()
            wait_for(partial(is_ready, server))
            server.send(number)
            assert server.wait(20) == 0
            assert "Traceback" not in server.log


def test_weights_that_break_after_the_start_was_checked(tmp_path: Path) -> None:
    """Cut off before it loads: one line, exit code 1, and never ready."""
    size = write_sparse_snapshot(tmp_path, "F32", n_embd=256, n_layer=2, n_head=2, vocab_size=2048)
    release = tmp_path / "release"
    model = ("--model", str(tmp_path), "--precision", "native")
    with RunningServer(*model, program=HELD, RELEASE=str(release)) as server:
        server.wait_until("/", 200)
        with (tmp_path / "model.safetensors").open("r+b") as file:
            file.truncate(size // 2)
        release.touch()
        assert server.process.wait(60) == 1
        assert "cannot be read" in server.log.splitlines()[-1]
        assert "is ready" not in server.log
        assert "Traceback" not in server.log


def test_probes_are_answered_while_it_generates(server: RunningServer) -> None:
    body = {"instances": ["The"] * 32, "parameters": {"min_length": 100, "max_length": 100}}
    done = threading.Event()

    def generate() -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=120) as client:
            assert client.post(server.predict_path, json=body).status_code == 200
        done.set()

    thread = threading.Thread(target=generate)
    thread.start()
    probes = 0
    while not done.is_set():
        assert server.client.get("/v2/health/ready").status_code == 200
        probes += 1
    thread.join()
    # A probe that had to wait for the generation would have been the only one.
    assert probes > 20


def test_what_can_never_fit_the_cache() -> None:
    with RunningServer("--kv_cache_gib", "0.001") as server:
        server.wait_until_ready()
        response = server.post('{"instances": ["a"], "parameters": {"max_length": 2000}}')
        assert response.status_code == 400
        error = response.json()["error"]
        assert "2000 tokens" in error
        fits = int(error.split("at most ")[1].split()[0])
        assert server.predict(["a"], max_length=fits, min_length=fits)


def test_openapi_document_has_the_schema(server: RunningServer) -> None:
    document = server.client.get("/openapi.json").json()
    paths = document["paths"]
    operation = paths["/v1/models/{model_name}:predict"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["instances"]
    parameters = schema["properties"]["parameters"]
    assert set(parameters["properties"]) == set(GenerationParameters.model_fields)
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["top_p"]["maximum"] == 1
    assert "$ref" not in str(schema)
    assert {"200", "400", "404", "413", "415", "503"} <= set(operation["responses"])
    assert "get" not in paths["/v1/models/{model_name}:predict"]


def test_metrics(server: RunningServer) -> None:
    server.predict(["a"], max_new_tokens=1)
    text = server.client.get("/metrics").text
    assert f'request_predict_seconds_count{{model_name="{NAME}"}}' in text
