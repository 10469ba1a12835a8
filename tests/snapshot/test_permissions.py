"""Who may read a snapshot: modes by the umask, and messages for those who may not."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptj_predictor.cli.errors import StartError, one_line_errors
from gptj_predictor.common.files import is_unreadable, put_in_place
from gptj_predictor.snapshot.cache import find_snapshot
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.verify import check_version
from tests.support.pulling import publish
from tests.support.users import OTHER_USER, as_other_user, shared_folder

ME = f"owner {os.geteuid()}, group {os.getegid()}"


@pytest.fixture
def cache() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


@pytest.fixture
def version(cache: Path) -> Path:
    return publish(cache)


def refusal(action: Callable[[], object]) -> str:
    """The error's line."""
    try:
        with one_line_errors():
            action()
    except StartError as error:
        return str(error)
    return "nothing was refused"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "config.json", "manifest.json"]
)
def test_a_file_of_another_user(version: Path, name: str) -> None:
    file = version / name
    file.chmod(0o600)
    text = as_other_user(lambda: refusal(lambda: SnapshotFolder.open(version)))
    assert text.startswith(f"user id {OTHER_USER} cannot read {file} (mode 0600, {ME})")
    assert "fetch it again" not in text


def test_verify_says_so_too(version: Path) -> None:
    file = version / "model.safetensors"
    file.chmod(0o600)
    text = as_other_user(lambda: "\n".join(check_version(version, everything=True)))
    assert text == f"user id {OTHER_USER} cannot read {file} (mode 0600, {ME})"


@pytest.mark.parametrize("closed", ["the version", "the model cache"])
def test_a_folder_of_another_user(cache: Path, version: Path, closed: str) -> None:
    folder = version if closed == "the version" else cache
    folder.chmod(0o700)
    text = as_other_user(
        lambda: refusal(lambda: SnapshotFolder.open(find_snapshot(str(version), cache)))
    )
    assert f"user id {OTHER_USER} cannot enter {folder} (mode 0700, {ME})" in text


def test_what_is_open_to_all_is_read(version: Path) -> None:
    assert as_other_user(lambda: refusal(lambda: SnapshotFolder.open(version))) == (
        "nothing was refused"
    )


def test_the_name_of_the_current_version(cache: Path, version: Path) -> None:
    file = version.parent.parent / "CURRENT"
    file.chmod(0o600)

    def find() -> str:
        try:
            return str(find_snapshot(str(cache), cache))
        except SnapshotError as error:
            return str(error)

    assert as_other_user(find) == f"user id {OTHER_USER} cannot read {file} (mode 0600, {ME})"


def test_what_cannot_be_written_is_not_called_unreadable(cache: Path) -> None:
    there = cache / "there"
    there.touch()
    for path in (there, cache / "missing", cache / "missing" / "below"):
        assert not is_unreadable(path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_modes_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        made = tmp_path / "new"
        made.touch(0o600)
        put_in_place(made, tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
