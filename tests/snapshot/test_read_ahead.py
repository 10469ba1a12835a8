"""Weights come into the page cache before anybody reads them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptj_predictor.cli.read_ahead import read_weights_ahead
from gptj_predictor.snapshot import read_ahead as module
from gptj_predictor.snapshot.read_ahead import PIECE_BYTES, read_ahead
from tests.support.page_cache import cached_bytes, drop_cached
from tests.support.servers import wait_for

SIZE = 3 * PIECE_BYTES


def write(file: Path, size: int = SIZE) -> Path:
    """A file on disk of which nothing is in the page cache."""
    file.write_bytes(os.urandom(size))
    drop_cached(file)
    return file


@pytest.fixture
def folder() -> Iterator[Path]:
    """Two files of weights and one that is none, on a disk: ``/tmp`` may be in memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        for file in ("a.safetensors", "b.safetensors", "c.bin"):
            write(folder / file)
            assert cached_bytes(folder / file) == 0
        yield folder


def test_weights_are_read_and_nothing_else(folder: Path) -> None:
    read_ahead(folder, 10 * SIZE)
    for name in ("a.safetensors", "b.safetensors"):
        wait_for(lambda name=name: cached_bytes(folder / name) == SIZE)  # type: ignore[misc]
    assert cached_bytes(folder / "c.bin") == 0


def test_no_more_than_the_memory_allows(folder: Path) -> None:
    module._advise(folder, SIZE + PIECE_BYTES)
    wait_for(lambda: cached_bytes(folder / "a.safetensors") == SIZE)
    wait_for(lambda: cached_bytes(folder / "b.safetensors") >= PIECE_BYTES)
    assert cached_bytes(folder / "b.safetensors") < SIZE


def test_a_folder_that_goes_away(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to("nothing")
    module._advise(tmp_path, SIZE)
    module._advise(tmp_path / "nothing", SIZE)


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_serve_s_snapshot_is_found(folder: Path, by: str) -> None:
    (folder / "config.json").write_text("{}")
    flags = ["--some_of_kserve_s", "1", f"--model={folder}"] if by == "flag" else []
    read_weights_ahead(flags, {"GPTJ_MODEL": str(folder)} if by == "variable" else {})
    wait_for(lambda: cached_bytes(folder / "a.safetensors") == SIZE)


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        (["--model"], {}),
        (["--model", "/nothing"], {}),
        (["--cache", "/nothing", "--tag", "x"], {}),
        ([], {"GPTJ_UNKNOWN": "1"}),
        (["--tag", "no/tag"], {}),
    ],
)
def test_what_is_wrong_is_left_for_serve_to_say(
    flags: list[str], environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    read_weights_ahead(flags, environment)
    assert capsys.readouterr() == ("", "")
