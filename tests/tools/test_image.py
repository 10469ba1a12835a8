"""The image's build, as far as files say it; no builder is needed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]


def test_the_build_gets_every_file_that_it_copies() -> None:
    """``.dockerignore`` leaves out all but what it names, and a copy of the rest ends the build."""
    ignored, *kept = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith(("#", "**/"))
    ]
    assert ignored == "*"
    assert all(line.startswith("!") for line in kept)
    names = {PurePosixPath(line[1:]) for line in kept}
    copies = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    sources = {PurePosixPath(source) for line in copies for source in line.split()}
    assert len(sources) >= 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert names & {source, *source.parents}, f"{source} is ignored"


def test_the_build_does_not_get_a_store_of_kernels() -> None:
    """One made in a checkout would go into every image, a CPU's too."""
    pytest.importorskip("triton")
    kernel_store = importlib.import_module("gptj_predictor.model.kernel_store")
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert f"**/{kernel_store.STORE.name}" in ignored
