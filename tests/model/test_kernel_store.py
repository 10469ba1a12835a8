"""Kernels that were compiled before: a start from them compiles nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.support.second_start import make_libcuda

ROOT = Path(__file__).parents[2]
MANAGER = "gptj_predictor.model.kernel_store:StoredKernels"
NO_COMPILER = {"PATH": "/nonexistent"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="the store is made with gcc"),
]


def python(*arguments: object, **environment: str) -> str:
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
    return done.stdout


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
    """Of bfloat16 kernels for one card."""
    flags = ["--architectures", 90, "--dtypes", "bf16", "--quantizations", quantization]
    flags += ["--output", folder / "here"]
    printed = python("tools/kernel_store.py", *flags)
    assert "for 1 architectures" in printed
    (folder / "here").rename(folder / "there")
    return folder / "there"


def start(
    store: Path, libcuda: Path, cache: Path, quantization: str = "none", **environment: str
) -> dict[str, int]:
    """Launch every kernel with Triton's own driver; what was compiled and loaded."""
    cuda = {"LD_LIBRARY_PATH": str(libcuda), "TRITON_LIBCUDA_PATH": str(libcuda)}
    triton = {"TRITON_CACHE_DIR": str(cache), "TRITON_CACHE_MANAGER": MANAGER}
    arguments = ["-m", "tests.support.second_start", libcuda, store, 90, quantization]
    counts: dict[str, int] = json.loads(python(*arguments, **cuda, **triton, **environment))
    return counts


def test_a_start_compiles_nothing(made: Path, libcuda: Path, tmp_path: Path) -> None:
    """Neither a kernel nor a C module: there is no compiler, and no folder to write to."""
    nowhere = tmp_path / "a file"
    nowhere.touch()
    counts = start(made, libcuda, nowhere / "cache", **NO_COMPILER)
    assert counts["kernels"] == 11
    assert counts["compiled"] == 0
    assert counts["loaded"] == counts["kernels"]
    assert counts["launched"] >= counts["kernels"]


@pytest.mark.large
def test_a_start_with_int8_weights_compiles_nothing(libcuda: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path, "int8")
    counts = start(store, libcuda, tmp_path / "cache", "int8", **NO_COMPILER)
    assert counts["kernels"] == 20
    assert counts["compiled"] == 0
    assert counts["loaded"] == counts["kernels"]


def test_what_is_missing_or_broken_is_compiled(made: Path, libcuda: Path, tmp_path: Path) -> None:
    """Into Triton's own cache; the store stays as it is, and the next start finds both."""
    store = tmp_path / "store"
    shutil.copytree(made, store)
    gone, broken, listless, *_ = sorted(path.parent for path in store.rglob("*.cubin"))
    shutil.rmtree(gone)
    next(broken.glob("*.json")).unlink()
    next(listless.glob("__grp__*")).write_text("{")
    before = sorted(store.rglob("*"))
    first, second = (start(store, libcuda, tmp_path / "cache", **NO_COMPILER) for _ in range(2))
    assert first["compiled"] == 3
    assert second["compiled"] == 0
    assert first["loaded"] == second["loaded"] == first["kernels"]
    assert sorted(store.rglob("*")) == before
