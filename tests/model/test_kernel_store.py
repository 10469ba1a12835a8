"""Kernels that were compiled before: a start from them compiles nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("triton")

from gptj_predictor.model import kernel_store
from tests.support.second_start import make_libcuda

ROOT = Path(__file__).parents[2]
MANAGER = "gptj_predictor.model.kernel_store:StoredKernels"
NO_COMPILER = {"PATH": "/nonexistent"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the store is made with gcc"),
]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python where Triton compiles, as it does not in the tests' own process."""
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": paths} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A driver that counts what it is given."""
    folder = tmp_path_factory.mktemp("libcuda")
    make_libcuda(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for one card, as the image's build makes it, and then moved."""
    return make_store(tmp_path_factory.mktemp("store"), "none")


def make_store(folder: Path, quantization: str) -> Path:
    """Of bfloat16 kernels for one card. No other cache is asked, whatever the variable names."""
    flags = ["--architectures", 90, "--dtypes", "bf16", "--quantizations", quantization]
    other = {"TRITON_CACHE_MANAGER": "nowhere:Nothing"}
    done = run("tools/kernel_store.py", *flags, "--output", folder / "here", **other)
    kernels = len(list((folder / "here").rglob("*.cubin")))
    assert f"{kernels} kernels for 1 architectures" in done.stdout
    (folder / "here").rename(folder / "there")
    return folder / "there"


@dataclass(frozen=True)
class Start:
    """What a start compiled, loaded and launched, and what it logged."""

    counts: dict[str, int]
    log: str


def start(
    store: Path, libcuda: Path, cache: Path, quantization: str = "none", **environment: str
) -> Start:
    """Launch every kernel with Triton's own driver."""
    cuda = {"LD_LIBRARY_PATH": str(libcuda), "TRITON_LIBCUDA_PATH": str(libcuda)}
    triton = {"TRITON_CACHE_DIR": str(cache), "TRITON_CACHE_MANAGER": MANAGER}
    arguments = ["-m", "tests.support.second_start", libcuda, store, 90, quantization]
    done = run(*arguments, **cuda, **triton, **environment)
    return Start(json.loads(done.stdout), done.stderr)


def test_a_start_compiles_nothing(made: Path, libcuda: Path, tmp_path: Path) -> None:
    """Neither a kernel nor a C module: there is no compiler, and no folder to write to."""
    nowhere = tmp_path / "a file"
    nowhere.touch()
    counts = start(made, libcuda, nowhere / "cache", **NO_COMPILER).counts
    assert counts["kernels"] == 11
    assert counts["compiled"] == 0
    assert counts["loaded"] == counts["kernels"]
    assert counts["launched"] >= counts["kernels"]


@pytest.mark.large
def test_a_start_with_int8_weights_compiles_nothing(libcuda: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path, "int8")
    counts = start(store, libcuda, tmp_path / "cache", "int8", **NO_COMPILER).counts
    assert counts["kernels"] == 20
    assert counts["compiled"] == 0
    assert counts["loaded"] == counts["kernels"]


def test_what_is_missing_or_damaged_is_compiled(made: Path, libcuda: Path, tmp_path: Path) -> None:
    """Into Triton's own cache; the store stays as it is, and the next start finds both."""
    store = tmp_path / "store"
    shutil.copytree(made, store)
    gone, bare, listless, cut, flipped, *_ = sorted(path.parent for path in store.rglob("*.cubin"))
    shutil.rmtree(gone)
    next(bare.glob("*.cubin")).unlink()
    next(listless.glob("__grp__*")).write_text("{")
    shorten(next(cut.glob("*.json")))
    flip(next(flipped.glob("*.cubin")))
    before = sorted(store.rglob("*"))
    starts = [start(store, libcuda, tmp_path / "cache", **NO_COMPILER) for _ in range(2)]
    first, second = (one.counts for one in starts)
    assert first["compiled"] == 5
    assert second["compiled"] == 0
    assert first["loaded"] == second["loaded"] == first["kernels"]
    assert sorted(store.rglob("*")) == before
    for one in starts:
        for key in (gone, bare):
            assert re.search(rf"a stored kernel is incomplete: .*{key.name}.*; compiling", one.log)
        for key in (listless, cut, flipped):
            assert re.search(rf"a stored kernel is damaged: .*{key.name}.*; compiling", one.log)


KEY = "A" * 32


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with two files under one key, beside a cache of Triton's that is empty."""
    folder = tmp_path / "store"
    (folder / KEY).mkdir(parents=True)
    (folder / KEY / "one").write_bytes(b"one")
    (folder / KEY / "two").write_bytes(b"two")
    kernel_store.write_digests(folder)
    monkeypatch.setattr(kernel_store, "STORE", folder)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def test_found_where_it_is(store: Path, tmp_path: Path) -> None:
    assert kernel_store.StoredKernels(KEY).get_file("one") == str(store / KEY / "one")
    assert not (tmp_path / "cache").exists()


def test_damage_in_one_file_is_that_of_the_key(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They belong together."""
    flip(store / KEY / "two")
    assert kernel_store.StoredKernels(KEY).get_file("one") is None
    [record] = caplog.records
    assert record.getMessage() == (
        f"a stored kernel is damaged: {store / KEY / 'two'}; compiling it instead"
    )


@pytest.mark.parametrize("content", [None, "{"])
def test_a_store_without_its_list(
    store: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """None of it is used, with one line."""
    (store / "digests.json").unlink()
    if content is not None:
        (store / "digests.json").write_text(content)
    for _ in range(2):
        assert kernel_store.StoredKernels(KEY).get_file("one") is None
    [record] = caplog.records
    assert f"the kernels in {store} are not used" in record.getMessage()


@pytest.mark.parametrize("absent", ["key", "store"])
def test_nothing_is_said_of_what_was_never_stored(
    store: Path, absent: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Kernels of another model, or a server outside of the image."""
    if absent == "store":
        shutil.rmtree(store)
    assert kernel_store.StoredKernels("B" * 32).get_file("one") is None
    assert not caplog.records


def test_everybody_may_read_it(made: Path) -> None:
    """The image's user is not who made it."""
    for path in (made, *made.rglob("*")):
        wanted = 0o555 if path.is_dir() else 0o444
        assert path.stat().st_mode & wanted == wanted, path


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
