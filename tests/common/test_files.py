"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gptj_predictor.common.files import put_in_place, sync, sync_tree, write_whole
from tests.support.servers import environment

WRITER = """
import itertools, sys
from pathlib import Path
from gptj_predictor.common.files import write_whole

print("ready", flush=True)
for number in itertools.count():
    write_whole(Path(sys.argv[1]), f"{number % 10}" * 100_000)
"""


def test_content_and_leftovers(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "ü\n")
    assert file.read_bytes() == "ü\n".encode()
    write_whole(file, b"\xff")
    assert file.read_bytes() == b"\xff"
    (tmp_path / "elsewhere").mkdir()
    write_whole(file, "x", temporary=tmp_path / "elsewhere" / "y")
    assert file.read_text() == "x"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.json", "elsewhere"]


def test_a_reader_finds_a_whole_file_at_every_moment(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_whole(file, "0" * 100_000)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, env=environment()
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        for _ in range(200):
            content = file.read_text()
            assert content == content[0] * 100_000
        writer.send_signal(signal.SIGKILL)
    content = file.read_text()
    assert content == content[0] * 100_000
    # What the killed writer left does not disturb the next one.
    write_whole(file, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    write_whole(file, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_whole(file, "new")
    assert file.read_text() == "old"


def test_order_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before the name, and the name before it returns."""
    done: list[str] = []

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        named = (tmp_path / "a").exists()
        done.append(f"{'folder' if is_folder else 'file'} {'named' if named else 'unnamed'}")

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "b").write_text("x")
    put_in_place(tmp_path / "b", tmp_path / "a")
    assert done == ["file unnamed", "folder named"]


def test_sync_tree_reaches_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("x")
    inodes: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda number: inodes.add(os.fstat(number).st_ino))
    sync_tree(tmp_path)
    assert inodes == {path.stat().st_ino for path in (tmp_path, *tmp_path.rglob("*"))}


def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network volumes; for a file it is an error."""

    def refuse(_: int) -> None:
        raise OSError(errno.EINVAL, "cannot")

    (tmp_path / "a").write_text("x")
    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="cannot"):
        sync(tmp_path / "a")
