"""Servers and models that only these tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.exact import Exact
from tests.support.faults import FAULTY_SERVER
from tests.support.secrets import KEYS, MountedSecret, key_lines
from tests.support.servers import HASTY_SECONDS, RunningServer, wait_for
from tests.support.stats import STATS_SERVER
from tests.support.strict import FLAGS, Strict


@pytest.fixture(scope="module")
def hasty() -> Iterator[RunningServer]:
    """Closes a connection whose request does not arrive in a second; idle ones stay open."""
    flags = ("--receive_timeout_seconds", str(HASTY_SECONDS), "--timeout-keep-alive", "600")
    with RunningServer(*flags) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Exact:
    """The demo in fp32, in transformers."""
    return Exact(tmp_path_factory.mktemp("exact"))


@pytest.fixture(scope="session")
def native(exact: Exact) -> Iterator[RunningServer]:
    """The same, served."""
    with RunningServer("--model", str(exact.folder), "--precision", "native") as running:
        running.wait_until_ready()
        assert "in float32 (the checkpoint's own)" in running.log
        yield running


@pytest.fixture(scope="module")
def key_secret(tmp_path_factory: pytest.TempPathFactory) -> MountedSecret:
    """What is mounted into ``locked``."""
    return MountedSecret(tmp_path_factory.mktemp("mounted") / "secret", keys=key_lines(*KEYS))


@pytest.fixture(scope="module")
def locked(key_secret: MountedSecret) -> Iterator[RunningServer]:
    """Wants a key, trusts a proxy on this machine; goes wrong as the file ``fault`` says."""
    flags = ("--api_key_file", key_secret["keys"], "--trusted_proxies", "127.0.0.1, 10.0.0.0/8")
    fault = str(key_secret.folder / "fault")
    with RunningServer(*flags, grpc=True, program=FAULTY_SERVER, FAULT=fault) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    """Runs one sequence at a time, with small limits."""
    file = tmp_path_factory.mktemp("stats") / "stats"
    flags = [str(part) for pair in FLAGS.items() for part in pair]
    with RunningServer(*flags, program=STATS_SERVER, STATS=str(file)) as server:
        server.wait_until_ready()
        wait_for(file.exists)
        yield Strict(server, file)
