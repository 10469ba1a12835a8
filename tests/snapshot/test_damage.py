"""What is remembered of a damaged version, and what follows from it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from gptj_predictor.model.network import Placement
from gptj_predictor.pull.publish import set_tag
from gptj_predictor.snapshot.cache import ModelRoot
from gptj_predictor.snapshot.damage import remember_damage, remembered_damage
from gptj_predictor.snapshot.errors import SnapshotDamagedError
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import load_network
from tests.support.pulling import flip, publish, run

WEIGHTS = "model.safetensors"


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return publish(tmp_path)


def mark(version: Path) -> Path:
    return version.with_name(f"{version.name}.damaged")


def load(version: Path) -> None:
    folder = SnapshotFolder.open(version)
    load_network(folder, torch.float32, Placement.on(torch.device("cpu"), folder.config.n_layer))


def test_a_restored_version_is_whole_again(version: Path, tmp_path: Path) -> None:
    content = (version / WEIGHTS).read_bytes()
    flip(version / WEIGHTS)
    assert run("verify", str(tmp_path)).returncode == 1
    assert WEIGHTS in mark(version).read_text()
    (version / WEIGHTS).write_bytes(content)
    assert run("info", str(tmp_path)).returncode == 1  # info does not read the weights
    assert run("verify", str(tmp_path)).returncode == 0
    assert not mark(version).exists()
    assert run("info", str(tmp_path)).returncode == 0


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "manifest.json"])
def test_a_loading_server_remembers(version: Path, name: str) -> None:
    flip(version / name)
    with pytest.raises(SnapshotDamagedError):
        load(version)
    problem = remembered_damage(version)
    assert problem is not None
    assert str(version / name) in problem
    assert "run:" not in problem


def test_in_a_cluster_the_charts_value_is_named(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can type a command into a pod that restarts, with a volume that is read-only."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    flip(version / WEIGHTS)
    with pytest.raises(SnapshotDamagedError) as caught:
        load(version)
    assert str(version / WEIGHTS) in str(caught.value)
    for text in (str(caught.value), run("verify", str(tmp_path)).stderr):
        assert text.count("run: ") == 1
        assert (
            "run: helm upgrade RELEASE CHART --reuse-values --set-string download.verify=" in text
        )
        assert "snapshot pull" not in text


def test_a_read_only_volume_remembers_nothing(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("gptj_predictor.snapshot.damage.write_whole", refuse)
    content = (version / WEIGHTS).read_bytes()
    flip(version / WEIGHTS)
    for _ in range(2):
        done = run("verify", str(tmp_path))
        assert done.returncode == 1
        assert "damaged; run: gptj-predictor snapshot pull" in done.stderr
    assert not mark(version).exists()
    # Nor can a mark be taken away there; what was read is whole all the same.
    mark(version).write_text("damaged\n")
    (version / WEIGHTS).write_bytes(content)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert run("verify", str(tmp_path)).returncode == 0


def test_what_cannot_be_read_is_not_called_damaged(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a failure all the same, but the next reader may have better luck."""

    def refuse(file: Path, _: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    with monkeypatch.context() as patch:
        patch.setattr("gptj_predictor.snapshot.verify.file_sha256", refuse)
        done = run("verify", str(tmp_path))
    assert done.returncode == 1
    assert f"user id {os.geteuid()} cannot read {version}" in done.stdout
    assert "damaged" not in done.stdout
    manifest = version / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    done = run("verify", str(tmp_path))
    assert done.returncode == 1
    assert "has format 99" in done.stdout
    assert not mark(version).exists()


def test_a_tag_keeps_a_damaged_version_from_being_superseded(version: Path, tmp_path: Path) -> None:
    root = ModelRoot(version.parent.parent)
    set_tag(root, "stable", version.name)
    new = publish(tmp_path, "89abcdef0123-bfloat16")
    flip(version / WEIGHTS)
    done = run("verify", str(tmp_path))
    assert done.returncode == 1
    assert f"{new}: whole" in done.stdout
    assert done.stderr.endswith(f"--dest {tmp_path} --verify --tag stable\n")
    done = run("info", str(tmp_path))
    assert done.returncode == 1
    assert ", tag stable, NOT WHOLE: " in done.stdout
    # The tag moves on: now nothing can be told to serve the damaged one.
    set_tag(root, "stable", new.name)
    done = run("verify", str(tmp_path))
    assert done.returncode == 0
    assert f"no longer served; run: gptj-predictor snapshot prune {root.path}" in done.stdout
    assert run("info", str(tmp_path)).returncode == 0


def test_a_superseded_version_named_itself(version: Path, tmp_path: Path) -> None:
    """Whoever names it wants to know about it; pulling it again would not change it."""
    publish(tmp_path, "89abcdef0123-bfloat16")
    flip(version / WEIGHTS)
    done = run("verify", str(version))
    assert done.returncode == 1
    assert f"damaged; run: gptj-predictor snapshot prune {version.parent.parent}" in done.stderr


def test_a_pointer_to_nothing(version: Path, tmp_path: Path) -> None:
    root = ModelRoot(version.parent.parent)
    root.current_path.write_text("absent\n")
    done = run("verify", str(tmp_path))
    assert done.returncode == 1
    assert f"{version}: whole" in done.stdout
    assert f"{root.current_path} names version 'absent', which is not there" in done.stderr
    assert run("verify", str(version)).returncode == 0  # asked about itself alone


def test_no_pointer_supersedes_nothing(version: Path, tmp_path: Path) -> None:
    ModelRoot(version.parent.parent).current_path.unlink()
    assert run("verify", str(tmp_path)).returncode == 0
    flip(version / WEIGHTS)
    assert run("verify", str(tmp_path)).returncode == 1


def test_marks_of_versions_that_are_gone(version: Path, tmp_path: Path) -> None:
    """They say nothing of a new version of that name, and prune removes them."""
    mark(version).write_text("old\n")
    version.rename(tmp_path / "away")
    remember_damage(version, "not there")
    assert mark(version).read_text() == "old\n"
    again = publish(tmp_path, version.name)
    assert remembered_damage(again) is None
    mark(version.with_name("gone")).write_text("old\n")
    version.with_name(".gone.damaged.new").write_text("x")
    assert run("prune", str(tmp_path)).returncode == 0
    assert [path.name for path in version.parent.iterdir()] == [version.name]


def test_other_folders_get_no_mark(tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    remember_damage(tmp_path / "snapshot", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot"]
