"""Why a process ends is in the file that Kubernetes reads; real processes and in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptj_predictor import cli
from gptj_predictor.cli import main
from gptj_predictor.cli.termination import MAX_BYTES, write_reason
from tests.support.servers import environment


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, as Kubernetes makes it, with what a command before this one wrote."""
    file = tmp_path / "termination-log"
    file.write_text("of an earlier end")
    monkeypatch.setenv("TERMINATION_LOG", str(file))
    return file


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["serve", "--model", "/nowhere"], 1, "--model /nowhere: there is no such folder"),
        (["serve", "--device", "cuda:99"], 2, "--device cuda:99: this machine has"),
        (["serve", "--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["snapshot", "pull", "a/b", "--offline", "--dest", "DEST"], 1, "--offline"),
        (["benchmark", "--model", "/nowhere", "--output", "DEST"], 1, "/nowhere"),
    ],
    ids=["start", "settings", "usage", "pull", "benchmark"],
)
def test_processes_write_their_last_line(
    tmp_path: Path, log: Path, arguments: list[str], code: int, named: str
) -> None:
    arguments = [str(tmp_path / "dest") if word == "DEST" else word for word in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "gptj_predictor", *arguments],
        env=environment(TERMINATION_LOG=str(log)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    reason = log.read_text()
    assert named in reason
    assert done.stderr.splitlines()[-1].removeprefix("gptj-predictor: ") == reason.removeprefix(
        "gptj-predictor: "
    )


def test_a_mistake_of_the_program(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("left\nright")

    monkeypatch.setattr("gptj_predictor.cli.snapshot.validated", broken)
    with pytest.raises(KeyError):
        main(["snapshot", "pull"])
    assert log.read_text() == r"KeyError: 'left\nright'"


def test_success_writes_nothing(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptj_predictor.pull.pull.pull", lambda request: "/there")
    assert main(["snapshot", "pull"]) == 0
    with pytest.raises(SystemExit) as caught:
        main(["snapshot", "pull", "--help"])
    assert caught.value.code == 0
    assert log.read_text() == "of an earlier end"


def test_commands_that_are_typed_into_a_container_write_nothing(log: Path, tmp_path: Path) -> None:
    assert main(["snapshot", "verify", str(tmp_path)]) == 1
    assert main(["snapshot", "info", str(tmp_path)]) == 1
    assert log.read_text() == "of an earlier end"


def test_no_more_than_kubernetes_takes(log: Path) -> None:
    write_reason(["serve"], "x" + "é" * MAX_BYTES, os.environ)
    assert log.read_text() == "x" + "é" * (MAX_BYTES // 2 - 1)


def test_a_file_that_cannot_be_written_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    missing = tmp_path / "missing"
    for path in (missing, missing / "below", tmp_path, pipe, "a\0b"):
        write_reason(["serve"], "the reason", {"TERMINATION_LOG": str(path)})
    assert not missing.exists()
    monkeypatch.setenv("TERMINATION_LOG", str(missing))
    assert main(["serve", "--model", "/nowhere"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "/nowhere" in line


def test_the_path_without_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "log"
    file.touch()
    monkeypatch.setattr(cli.termination, "DEFAULT_PATH", str(file))
    write_reason(["serve"], "the reason", {})
    assert file.read_text() == "the reason"
