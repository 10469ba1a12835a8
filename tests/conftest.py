from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Where there is no GPU, Triton's interpreter runs the kernels. Triton reads this when it is
# imported, and torch may import it.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# The models here are too small to share between threads, and tests share the cores. Read when torch
# is imported, for all threads of the process.
os.environ["OMP_NUM_THREADS"] = "1"
# Error messages advise other things in a cluster, where the tests may run.
os.environ.pop("KUBERNETES_SERVICE_HOST", None)

import pytest

from tests.support.engines import RunningEngine
from tests.support.faults import FAULTY_SERVER
from tests.support.reference import ReferenceModel, make_reference
from tests.support.secrets import (
    KEYS,
    ORIGINS,
    Authority,
    MountedSecret,
    bearer,
    key_lines,
    tls_flags,
)
from tests.support.servers import HttpsServer, RunningServer

#: Odd sizes, one head to many, rotary over a part of the head or all of it.
SHAPES: dict[str, dict[str, Any]] = {
    "one head": {"n_embd": 24, "n_layer": 2, "n_head": 1, "rotary_dim": 24, "vocab_size": 61},
    "many heads": {"n_embd": 84, "n_layer": 3, "n_head": 7, "rotary_dim": 2, "vocab_size": 131},
    "odd inner": {
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 4,
        "rotary_dim": 6,
        "n_inner": 37,
        "vocab_size": 97,
    },
    "tied": {
        "n_embd": 64,
        "n_layer": 1,
        "n_head": 2,
        "rotary_dim": 16,
        "vocab_size": 50,
        "tie_word_embeddings": True,
    },
    "other activation": {
        "n_embd": 40,
        "n_layer": 2,
        "n_head": 5,
        "rotary_dim": 8,
        "vocab_size": 33,
        "activation_function": "relu",
    },
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--large", action="store_true", help="run the large counts")
    parser.addoption("--cluster", action="store_true", help="run what needs a cluster")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what ``make test-all`` or ``make test-cluster`` runs; pytest says how many."""
    out = [
        item
        for item in items
        for option in ("large", "cluster")
        if item.get_closest_marker(option) and not config.getoption(f"--{option}")
    ]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def large(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--large"))


@pytest.fixture(params=list(SHAPES), ids=lambda name: name.replace(" ", "_"))
def reference(request: pytest.FixtureRequest, tmp_path: Path) -> ReferenceModel:
    """A random fp32 GPT-J of each shape, on disk and in transformers."""
    return make_reference(tmp_path, seed=len(request.param), **SHAPES[request.param])


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> ReferenceModel:
    """One random fp32 GPT-J for tests that generate a lot."""
    shape = {"n_embd": 48, "n_layer": 2, "n_head": 3, "rotary_dim": 8, "vocab_size": 67}
    return make_reference(tmp_path_factory.mktemp("small"), seed=7, **shape)


@pytest.fixture
def engine(small: ReferenceModel) -> Iterator[RunningEngine]:
    with RunningEngine(small.folder) as running:
        yield running


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """The demo, served by a real process."""
    with RunningServer(grpc=True) as running:
        running.wait_until_ready()
        yield running


@pytest.fixture(scope="session")
def authority() -> Authority:
    """Signed the certificate of ``secured``."""
    return Authority()


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> MountedSecret:
    """What is mounted into ``secured``: certificate, authority and keys."""
    folder = tmp_path_factory.mktemp("mounted") / "secret"
    content = authority.issue() | {"ca_crt": authority.certificate, "keys": key_lines(*KEYS)}
    return MountedSecret(folder, **content)


@pytest.fixture(scope="session")
def secured(authority: Authority, secrets: MountedSecret) -> Iterator[HttpsServer]:
    """The demo with TLS, keys and all that is off without flags; its client has the first key.

    What goes wrong in it is in the file ``fault`` beside the secrets.
    """
    flags = [*tls_flags(secrets), "--api_key_file", secrets["keys"], "--open_metrics", "true"]
    flags += ["--log_format", "json", "--log_prompts", "true"]
    flags += ["--cors_origins", ", ".join(ORIGINS)]
    fault = str(secrets.folder / "fault")
    with HttpsServer(
        authority.trusted(), *flags, grpc=True, program=FAULTY_SERVER, FAULT=fault
    ) as running:
        running.wait_until_ready()
        running.client.headers.update(bearer(KEYS[0]))
        yield running
