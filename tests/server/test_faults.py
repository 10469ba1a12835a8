"""What goes wrong inside, and what the clients, the probes and the process make of it."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gptj_predictor.demo import DEMO_SNAPSHOT
from tests.support.faults import FAULTY_SERVER, MEMORY_FOR_PROMPT_TOKENS, SECRET
from tests.support.metrics import Scrape
from tests.support.raw_clients import post
from tests.support.servers import (
    HELD,
    LIVE_PATHS,
    READY_PATHS,
    RunningServer,
    wait_for,
)

pytestmark = pytest.mark.process

SHORT = "The sky"
LONG = "The secret to a happy life is to start again and again and again"
LEAKS = (SECRET, "Traceback", "gptj_predictor/", "Error(", "KeyError", "torch", "CUDA", "engine.py")


class Faulty:
    """A running server and the file that says what is wrong with it."""

    def __init__(self, server: RunningServer, file: Path) -> None:
        self.server = server
        self.termination_log = file.with_name("termination-log")
        self._file = file

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        self._file.write_text(name)
        try:
            yield
        finally:
            self._file.unlink()

    def post(self, *prompts: str, **parameters: object) -> httpx.Response:
        parameters = {"temperature": 0, "max_new_tokens": 4} | parameters
        body = {"instances": prompts, "parameters": parameters}
        with httpx.Client(base_url=self.server.client.base_url, timeout=60) as client:
            return client.post(self.server.predict_path, json=body)

    def check_fine(self) -> None:
        """It is live and ready, and the next request works."""
        for path in LIVE_PATHS + READY_PATHS:
            assert self.server.client.get(path).status_code == 200
        assert self.post(SHORT).status_code == 200


@contextmanager
def faulty_server(folder: Path, *flags: str) -> Iterator[Faulty]:
    file, log = folder / "fault", folder / "termination-log"
    log.touch()
    with RunningServer(
        *flags, program=FAULTY_SERVER, FAULT=str(file), TERMINATION_LOG=str(log)
    ) as server:
        server.wait_until_ready()
        yield Faulty(server, file)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """One server for all faults that it survives."""
    with faulty_server(tmp_path_factory.mktemp("faulty")) as running:
        yield running


def check_error(response: httpx.Response, status: int) -> None:
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert not [leak for leak in LEAKS if leak in response.text]
    assert response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == (status == 503)


def test_out_of_memory_in_a_prefill(faulty: Faulty) -> None:
    """A prompt that is too long for the memory gets 503; those beside it get their texts."""
    expected = faulty.post(SHORT, max_new_tokens=60).json()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(faulty.post, SHORT, max_new_tokens=60)
        with faulty.fault("memory"):
            long = pool.submit(faulty.post, LONG)
            short = [pool.submit(faulty.post, SHORT, max_new_tokens=60) for _ in range(3)]
            check_error(long.result(), 503)
            assert [one.result().json() for one in [*short, running]] == [expected] * 4
    assert "ran out of memory" in long.result().json()["error"]
    assert len(LONG.split()) > MEMORY_FOR_PROMPT_TOKENS
    faulty.check_fine()


def test_client_gone_while_its_prompt_is_tokenized(faulty: Faulty) -> None:
    """The engine never hears of it: not a step, not a sequence."""
    server = faulty.server
    before = Scrape.of(server)
    with faulty.fault("slow"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(post(server.predict_path, {"instances": [SHORT]}))
            wait_for(lambda: Scrape.of(server).value("gptj_queue_requests") == 1)
        assert Scrape.of(server).rises(before) == {}  # and it has seen that the client is gone
    wait_for(lambda: bool(Scrape.of(server).rises(before)))
    wait_for(lambda: Scrape.of(server).value("gptj_queue_requests") == 0)
    assert Scrape.of(server).rises(before) == {
        'gptj_requests_total{outcome="cancelled",protocol="v1"}': 1
    }
    faulty.check_fine()


@pytest.mark.parametrize("fault", ["exception", "nan", "tokenizer", "detokenizer"])
def test_faults_that_end_one_request(faulty: Faulty, fault: str) -> None:
    with faulty.fault(fault):
        check_error(faulty.post(SHORT, LONG), 500)
        for path in LIVE_PATHS + READY_PATHS:
            assert faulty.server.client.get(path).status_code == 200
    faulty.check_fine()
    assert faulty.post(LONG).status_code == 200


@pytest.mark.parametrize(
    ("fault", "flags", "cause"),
    [
        ("device", (), "the engine died: CUDA error: an illegal memory access was encountered"),
        ("thread", (), "the engine died: SystemExit()"),
        (
            "hang",
            ("--step_timeout_seconds", "1"),
            "the engine hangs: a step has been running for 1 s",
        ),
    ],
)
def test_faults_that_only_a_restart_mends(
    tmp_path: Path, fault: str, flags: tuple[str, ...], cause: str
) -> None:
    """Everyone is told, liveness fails, and the process ends with a line that says why."""
    with faulty_server(tmp_path, *flags) as faulty, faulty.fault(fault):
        statuses: list[int] = []

        def probe() -> None:
            with httpx.Client(base_url=faulty.server.client.base_url) as client:
                while True:
                    try:
                        statuses.append(client.get("/v2/health/live").status_code)
                    except httpx.TransportError:
                        return

        prober = threading.Thread(target=probe)
        prober.start()
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(faulty.post, SHORT) for _ in range(4)]
            for one in waiting:
                check_error(one.result(), 503)
        assert faulty.server.process.wait(20) == 1
        prober.join()
        assert 503 in statuses
        assert statuses[statuses.index(503) :] == [503] * (len(statuses) - statuses.index(503))
        assert faulty.server.log.splitlines()[-1].endswith(cause)
        assert faulty.termination_log.read_text() == cause


def test_the_disk_is_full_and_the_volume_vanishes(tmp_path: Path) -> None:
    """All that is needed is in memory, and nothing has to be written, not even the log."""
    folder = tmp_path / "snapshot"
    shutil.copytree(DEMO_SNAPSHOT, folder)
    with RunningServer("--model", str(folder), log="/dev/full") as server:
        server.wait_until_ready()
        shutil.rmtree(folder)
        assert server.predict(["The sky", ""], max_new_tokens=3, stop="zebra")
        assert server.post("{").status_code == 400
        for path in LIVE_PATHS + READY_PATHS:
            assert server.client.get(path).status_code == 200
        assert server.stop() == 0


def test_the_volume_vanishes_before_the_load(tmp_path: Path) -> None:
    """One line, exit code 1."""
    folder, release = tmp_path / "snapshot", tmp_path / "release"
    shutil.copytree(DEMO_SNAPSHOT, folder)
    with RunningServer("--model", str(folder), program=HELD, RELEASE=str(release)) as server:
        server.wait_until("/", 200)
        shutil.rmtree(folder)
        release.touch()
        assert server.process.wait(60) == 1
        assert "cannot be read" in server.log.splitlines()[-1]
        assert "Traceback" not in server.log
