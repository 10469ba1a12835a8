"""Pulls that are killed, and pulls that meet."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from gptj_predictor.model.network import Placement
from gptj_predictor.snapshot.cache import ModelRoot, find_snapshot
from gptj_predictor.snapshot.errors import SnapshotMissingError
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.info import describe_root
from gptj_predictor.snapshot.load import load_network
from gptj_predictor.snapshot.verify import find_damage
from tests.support.hub import HubServer
from tests.support.pulling import MODEL_ID, ROOT, Puller, Pullers, pickled, tree
from tests.support.servers import RunningServer

pytestmark = pytest.mark.process

WEIGHTS = "pytorch_model.bin"


def served(cache: Path) -> str | None:
    """The version that a server would serve, once it has loaded it whole."""
    try:
        version = find_snapshot(MODEL_ID, cache)
    except SnapshotMissingError:
        return None
    folder = SnapshotFolder.open(version)
    load_network(folder, torch.float32, Placement.on(torch.device("cpu"), folder.config.n_layer))
    return version.name


def check_truth(cache: Path) -> None:
    """What ``info`` says is so."""
    if not (cache / ROOT).exists():
        return
    info = describe_root(ModelRoot(cache / ROOT))
    for version in info.versions:
        assert version.whole, version
        assert find_damage(Path(version.path), everything=True) == []
    current = [Path(version.path).name for version in info.versions if version.current]
    assert current == ([] if info.problem else [served(cache)])
    assert info.problem is None or "no whole snapshot yet" in info.problem


@pytest.mark.parametrize("has_old", [False, True], ids=["empty_cache", "old_version"])
def test_killed_at_random_moments(tmp_path: Path, large: bool, has_old: bool) -> None:
    """SIGKILL, look, start again: at every moment the truth, at the end the same bytes."""
    kills = 50 if large else 4
    moments = random.Random(kills + has_old)
    whole, cache = tmp_path / "whole", tmp_path / "cache"
    old = tmp_path / "old"
    with HubServer(chunk_delay=0.001) as hub, Pullers(hub.endpoint, tmp_path) as pullers:
        names: set[str | None] = {None}
        if has_old:
            hub.add(MODEL_ID, pickled(tmp_path / "m1", seed=1))
            puller = pullers.start("snapshot", "pull", "--dest", str(old))
            assert puller.wait() == 0, puller.output
            names = {served(old)}
            shutil.copytree(old, whole)
            shutil.copytree(old, cache)
        hub.add(MODEL_ID, pickled(tmp_path / "m"))
        began = time.monotonic()
        puller = pullers.start("snapshot", "pull", "--dest", str(whole))
        assert puller.wait() == 0, puller.output
        longest = time.monotonic() - began
        wanted = tree(whole)
        names.add(served(whole))

        killed, rounds, stages = 0, 0, set()
        while killed < kills:
            puller = pullers.start("snapshot", "pull", "--dest", str(cache))
            time.sleep(moments.uniform(0, longest))
            if puller.kill():
                killed += 1
                longest *= 1.05
                if killed in {2, kills // 2}:
                    check_server(cache)
            else:
                assert puller.wait() == 0, puller.output
                assert tree(cache) == wanted
                longest *= 0.8  # the machine is quicker than it was
                shutil.rmtree(cache)
                rounds += 1
                if has_old:
                    shutil.copytree(old, cache)
            check_truth(cache)
            assert served(cache) in names
            stages |= {path.name.split("-")[0] for path in cache.glob(f"{ROOT}/pull/*")}
        puller = pullers.start("snapshot", "pull", "--dest", str(cache))
        assert puller.wait() == 0, puller.output
        assert tree(cache) == wanted
    print(f"{killed} kills, {rounds} pulls ended between them, stages seen: {sorted(stages)}")


def check_server(cache: Path) -> None:
    """A real server, started while the model cache is as a killed pull left it."""
    has_one = served(cache) is not None
    with RunningServer("--model", MODEL_ID, "--cache", str(cache)) as server:
        if has_one:
            server.wait_until_ready()
            assert server.predict(["The sky"], max_new_tokens=2)
        else:
            assert server.process.wait(60) == 1
            assert f"run: gptj-predictor snapshot pull {MODEL_ID}" in server.log


def test_eight_at_once_download_once(tmp_path: Path) -> None:
    with HubServer(chunk_delay=0.005) as hub, Pullers(hub.endpoint, tmp_path) as pullers:
        hub.add(MODEL_ID, pickled(tmp_path / "m"))
        cache = tmp_path / "cache"
        pulls = [pullers.start("snapshot", "pull", "--dest", str(cache)) for _ in range(8)]
        for puller in pulls:
            assert puller.wait() == 0, puller.output
        for name in (WEIGHTS, "config.json", "tokenizer.json"):
            assert hub.downloads(name) == 1
        (version,) = ModelRoot(cache / ROOT).versions()
        assert find_damage(version, everything=True) == []
        assert set(tree(cache / ROOT)) == {
            "CURRENT",
            *(f"versions/{version.name}/{path.name}" for path in version.iterdir()),
        }
        assert sum("converting" in puller.output for puller in pulls) == 1
        waited = [p for p in pulls if "waiting for another pull" in p.output]
        assert len(waited) == 7
        assert all(str(version) in puller.output for puller in pulls)


def start_download(pullers: Pullers, cache: Path) -> Puller:
    """A pull that has begun to download."""
    puller = pullers.start("snapshot", "pull", "--dest", str(cache))
    while not list(cache.glob(f"{ROOT}/pull/source-*/*.partial")):
        time.sleep(0.01)
    return puller


def test_a_lease_that_was_lost_stops_the_pull(tmp_path: Path) -> None:
    """Its files may be another's work by now."""
    with HubServer(chunk_delay=0.02) as hub, Pullers(hub.endpoint, tmp_path) as pullers:
        hub.add(MODEL_ID, pickled(tmp_path / "m"))
        cache = tmp_path / "cache"
        puller = start_download(pullers, cache)
        root = ModelRoot(cache / ROOT)
        root.lock_path.unlink()
        assert puller.wait() == 1
        assert "nothing is lost, pull again" in puller.output
        assert root.versions() == []


def test_sigterm_ends_a_pull_that_can_go_on(tmp_path: Path) -> None:
    with HubServer(chunk_delay=0.02) as hub, Pullers(hub.endpoint, tmp_path) as pullers:
        hub.add(MODEL_ID, pickled(tmp_path / "m"))
        cache = tmp_path / "cache"
        puller = start_download(pullers, cache)
        root = ModelRoot(cache / ROOT)
        os.kill(puller.pid, signal.SIGTERM)
        assert puller.wait() == 143
        assert root.pulling_since() is None  # the lease is free at once
        puller = pullers.start("snapshot", "pull", "--dest", str(cache))
        assert puller.wait() == 0
        assert "going on at" in puller.output


def test_a_server_waits_for_a_pull(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with HubServer(chunk_delay=0.02) as hub, Pullers(hub.endpoint, tmp_path) as pullers:
        hub.add(MODEL_ID, pickled(tmp_path / "m"))
        with RunningServer("--cache", str(cache), "--wait-for-snapshot", "90") as server:
            while "waiting up to" not in server.log:
                assert server.process.poll() is None, server.log
                time.sleep(0.05)
            assert "no pull is at work there" in server.log
            puller = pullers.start("snapshot", "pull", "--dest", str(cache))
            server.wait_until_ready()
            assert server.predict(["The sky"], max_new_tokens=2)
            assert puller.wait() == 0
        with RunningServer("--cache", str(tmp_path / "none" / ".."), "--model", "a/b") as server:
            assert server.process.wait(60) == 1
            assert "run: gptj-predictor snapshot pull a/b" in server.log


def test_a_server_without_a_model_cache_says_what_to_pull(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with RunningServer("--tag", "stable", "--cache", str(absent)) as server:
        assert server.process.wait(60) == 1
        last = server.log.splitlines()[-1]
        assert last.endswith(
            f"run: gptj-predictor snapshot pull {MODEL_ID} --dest {absent} --tag stable"
        )
