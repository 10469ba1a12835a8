"""A model cache on disk: which snapshot is served, what is damaged, what may go."""

from __future__ import annotations

import json
import os
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.model.network import Placement
from gptj_predictor.pull.prune import remove_version
from gptj_predictor.pull.publish import hold_lease, lease_of, set_tag
from gptj_predictor.snapshot.blocks import BLOCK_BYTES, block_ranges, read_layout
from gptj_predictor.snapshot.cache import ModelRoot, find_snapshot, in_use
from gptj_predictor.snapshot.errors import SnapshotError, SnapshotMissingError
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import load_network
from gptj_predictor.snapshot.load_blocks import BlockLoader
from gptj_predictor.snapshot.manifest import MANIFEST_FILE
from gptj_predictor.snapshot.verify import find_damage
from tests.support.pulling import COMMIT, MODEL_ID, ROOT, publish, run
from tests.support.servers import RunningServer


def start(version: Path) -> None:
    """What a server does with a snapshot before it is ready."""
    folder = SnapshotFolder.open(version)
    load_network(folder, torch.float32, Placement.on(torch.device("cpu"), folder.config.n_layer))


class TestFind:
    def test_by_folder_root_cache_and_id(self, tmp_path: Path) -> None:
        version = publish(tmp_path)
        for model in (version, version.parent.parent, tmp_path):
            assert find_snapshot(str(model), Path("/absent")) == version
        assert find_snapshot(MODEL_ID, tmp_path) == version
        assert find_snapshot("eleutherai/GPT-J-6b", tmp_path) == version
        # The model's root may be all that is mounted of the volume.
        assert find_snapshot(MODEL_ID, tmp_path / ROOT) == version
        assert find_snapshot(str(DEMO_SNAPSHOT), tmp_path) == DEMO_SNAPSHOT

    def test_several_models(self, tmp_path: Path) -> None:
        one, two = publish(tmp_path), publish(tmp_path, model_id="other/gptj")
        assert find_snapshot("other/gptj", tmp_path) == two
        assert find_snapshot(MODEL_ID, tmp_path) == one
        with pytest.raises(SnapshotError, match=f"name one with --model: {ROOT}, other-gptj"):
            find_snapshot(str(tmp_path), tmp_path)

    @pytest.mark.parametrize("model", [MODEL_ID, "./x", "/absent/x", "a/b/c"])
    def test_missing(self, tmp_path: Path, model: str) -> None:
        (tmp_path / "lost+found").mkdir()
        with pytest.raises(SnapshotMissingError, match=model):
            find_snapshot(model, tmp_path)
        with pytest.raises(SnapshotMissingError, match="run: gptj-predictor snapshot pull"):
            find_snapshot(str(tmp_path), tmp_path)

    def test_another_models_root(self, tmp_path: Path) -> None:
        version = publish(tmp_path)
        with pytest.raises(SnapshotMissingError, match="no snapshot of that id"):
            find_snapshot("other/gptj", version.parent.parent)

    def test_by_tag(self, tmp_path: Path) -> None:
        version = publish(tmp_path)
        root = ModelRoot(version.parent.parent)
        for model in (MODEL_ID, str(tmp_path), str(root.path)):
            with pytest.raises(SnapshotMissingError, match="with the tag main-auto"):
                find_snapshot(model, tmp_path, "main-auto")
        set_tag(root, "main-auto", version.name)
        for model in (MODEL_ID, str(tmp_path), str(root.path)):
            assert find_snapshot(model, tmp_path, "main-auto") == version
        assert find_snapshot(MODEL_ID, root.path, "main-auto") == version
        with pytest.raises(SnapshotError, match="--tag main-auto is looked up in a model cache"):
            find_snapshot(str(version), tmp_path, "main-auto")

    def test_what_to_pull_names_the_tag(self, tmp_path: Path) -> None:
        """Without a model cache, in an empty one, and in one that lacks the tag."""
        absent, empty = tmp_path / "absent", tmp_path / "empty"
        empty.mkdir()
        publish(tmp_path / "models")
        for cache in (absent, empty, tmp_path / "models"):
            with pytest.raises(SnapshotMissingError) as caught:
                find_snapshot(str(cache), cache, "x")
            command = f"run: gptj-predictor snapshot pull {MODEL_ID} "
            assert command in str(caught.value)
            assert f"--dest {cache}" in str(caught.value)
            assert str(caught.value).endswith(" --tag x")

    def test_tags_of_versions_that_are_gone(self, tmp_path: Path) -> None:
        old = publish(tmp_path)
        root = ModelRoot(old.parent.parent)
        set_tag(root, "old", old.name)
        new = publish(tmp_path, "89abcdef0123-bfloat16")
        set_tag(root, "new", new.name)
        assert run("prune", str(tmp_path)).returncode == 0
        assert [file.name for file in root.tags_path.iterdir()] == ["new"]
        with pytest.raises(SnapshotMissingError):
            find_snapshot(MODEL_ID, tmp_path, "old")
        for content in ("", "absent", "../pull", ".", ".."):
            (root.tags_path / "new").write_text(content)
            assert root.tagged("new") is None

    @pytest.mark.parametrize("content", ["", "absent\n", "../pull\n", "..", "\udcff"])
    def test_a_damaged_pointer(self, tmp_path: Path, content: str) -> None:
        root = ModelRoot(publish(tmp_path).parent.parent)
        root.current_path.write_text(content, errors="surrogateescape")
        with pytest.raises(SnapshotError, match=r"CURRENT .*(not there|cannot be read)"):
            find_snapshot(MODEL_ID, tmp_path)


@pytest.mark.slow
def test_one_flipped_byte_anywhere(tmp_path: Path, large: bool) -> None:
    """In every file: first, last, some between; found by verify and by a server's start."""
    version = publish(tmp_path)
    start(version)
    generator = torch.Generator().manual_seed(1)
    count = 0
    for file in sorted(version.iterdir()):
        content = file.read_bytes()
        header = read_layout(file)[0] if file.suffix == ".safetensors" else 0
        between = torch.randint(len(content), (60 if large else 5,), generator=generator).tolist()
        for position in {0, 7, 8, header, len(content) - 1, *between}:
            bit = 1 << int(torch.randint(8, (), generator=generator))
            damaged = bytearray(content)
            damaged[position] ^= bit
            file.write_bytes(damaged)
            assert find_damage(version, everything=True), (file.name, position)
            with pytest.raises(SnapshotError, match=r"run: gptj-predictor snapshot pull Eleu") as e:
                start(version)
            assert file.name in str(e.value) or MANIFEST_FILE in str(e.value)
            assert "\n" not in str(e.value)
            count += 1
        file.write_bytes(content)
        assert find_damage(version, everything=True) == []
    start(version)
    print(f"{count} flipped bytes found")


def test_missing_truncated_and_longer_files(tmp_path: Path) -> None:
    version = publish(tmp_path)
    for file in sorted(version.iterdir()):
        if file.name == MANIFEST_FILE:
            continue
        content = file.read_bytes()
        for damaged in (None, content[:-1], b"", content + b"\n"):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            assert file.name in find_damage(version, everything=False)[0]
            with pytest.raises(SnapshotError, match=f"{file.name}.*run: gptj-predictor snapshot"):
                start(version)
        file.write_bytes(content)


@pytest.mark.process
def test_a_server_names_file_and_command(tmp_path: Path) -> None:
    """As a process: damage that only a look at the values shows; and the flag to skip the look."""
    version = publish(tmp_path)
    weights = version / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with RunningServer("--model", MODEL_ID, "--cache", str(tmp_path)) as server:
        assert server.process.wait(60) == 1
        last = server.log.splitlines()[-1]
        assert str(weights) in last
        assert f"--dest {tmp_path} --verify" in last
        assert "Traceback" not in server.log
    flags = ("--model", str(tmp_path), "--check_digests", "false")
    with RunningServer(*flags) as server:
        server.wait_until_ready()


def test_blocks_cover_every_byte_and_end_with_tensors() -> None:
    file = DEMO_SNAPSHOT / "model.safetensors"
    header, tensors = read_layout(file)
    ranges = list(block_ranges(file.stat().st_size, header, tensors))
    assert ranges[0] == (0, header)
    assert ranges[-1][1] == file.stat().st_size
    assert all(end == begin for (_, end), (begin, _) in pairwise(ranges))
    assert all(0 < end - begin <= max(BLOCK_BYTES, header) for begin, end in ranges)


class TestCommands:
    @pytest.fixture
    def version(self, tmp_path: Path) -> Path:
        return publish(tmp_path)

    def test_info(self, version: Path, tmp_path: Path) -> None:
        done = run("info", str(tmp_path), "--json")
        assert done.returncode == 0, done.stderr
        (root,) = json.loads(done.stdout)
        assert root["problem"] is None
        assert root["pull"] is None
        (described,) = root["versions"]
        assert described["path"] == str(version)
        assert described["whole"]
        assert described["current"]
        assert (described["commit"], described["precision"]) == (COMMIT, "bfloat16")
        sizes = sum(file.stat().st_size for file in version.iterdir())
        assert described["bytes"] == sizes - (version / MANIFEST_FILE).stat().st_size
        done = run("info", str(tmp_path))
        assert f"* {version.name}: {MODEL_ID} at main ({COMMIT})" in done.stdout
        assert "whole" in done.stdout

    def test_info_of_damage_and_of_nothing(self, version: Path, tmp_path: Path) -> None:
        (version / "tokenizer.json").unlink()
        done = run("info", str(tmp_path))
        assert done.returncode == 1
        assert "NOT WHOLE" in done.stdout
        assert "tokenizer.json is missing" in done.stderr
        done = run("info", str(version))
        assert done.returncode == 1
        assert "has no snapshots; run: gptj-predictor snapshot pull" in done.stderr

    def test_verify(self, version: Path, tmp_path: Path) -> None:
        done = run("verify", str(tmp_path))
        assert (done.returncode, done.stdout) == (0, f"{version}: whole\n")
        assert run("verify", str(version)).returncode == 0
        weights = version / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
        done = run("verify", str(tmp_path))
        assert done.returncode == 1
        assert f"{weights} is damaged: its SHA-256" in done.stdout
        assert f"--dest {tmp_path} --verify" in done.stderr
        done = run("verify", str(DEMO_SNAPSHOT))
        assert done.returncode == 1
        assert "no whole snapshot to verify" in done.stderr

    def test_prune(self, version: Path, tmp_path: Path) -> None:
        new = publish(tmp_path, "fedcba987654-bfloat16")
        root = ModelRoot(version.parent.parent)
        root.pull_path.mkdir()
        (root.pull_path / "x.partial").write_bytes(b"x" * 5000)
        with in_use(version):
            done = run("prune", str(tmp_path))
            assert done.returncode == 0, done.stderr
            assert f"{version}: kept, a server is reading it" in done.stdout
        assert not root.pull_path.exists()
        done = run("prune", str(tmp_path))
        assert f"{version}: removed" in done.stdout
        assert root.versions() == [new]
        assert find_damage(new, everything=True) == []
        assert {path.name for path in root.path.iterdir()} == {"CURRENT", "versions"}

    @pytest.mark.slow
    def test_prune_while_a_pull_is_at_work(self, version: Path, tmp_path: Path) -> None:
        publish(tmp_path, "fedcba987654-bfloat16")
        with lease_of(ModelRoot(version.parent.parent)):
            done = run("prune", str(tmp_path))
            assert "a pull is at work" in done.stdout
            info = run("info", str(tmp_path))
            assert "a pull is at work" in info.stdout
        assert version.is_dir()

    def test_default_folder_is_the_mounted_one(self) -> None:
        done = run("info")
        assert done.returncode == 1
        assert "/mnt/models does not exist" in done.stderr


def test_a_loading_server_keeps_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish(tmp_path)
    publish(tmp_path, "fedcba987654-bfloat16")
    folder = SnapshotFolder.open(version)
    seen: set[bool] = set()

    read_block = BlockLoader._read

    def read(*inputs: Any) -> Any:
        seen.add(remove_version(version))
        return read_block(*inputs)

    monkeypatch.setattr(BlockLoader, "_read", read)
    load_network(folder, torch.float32, Placement.on(torch.device("cpu"), folder.config.n_layer))
    assert seen == {False}
    assert remove_version(version)


def test_who_pulls_is_said_for_people(tmp_path: Path) -> None:
    """In a container filelock notes the PID namespace with the host."""
    root, host = ModelRoot(tmp_path / "model"), socket.gethostname()
    with hold_lease(root):
        holder = root.lock_path.read_text()
        assert host in holder
        if f"{host}?pidns-" not in holder:
            root.lock_path.write_text(holder.replace(host, f"{host}?pidns-4026532567", 1))
        who = root.describe_pull()
    assert who.startswith(f"{host} (process {os.getpid()}), last sign of life 0 s")
