"""Pulling: what comes out, and a clear word where nothing can."""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPT2Config, GPTJConfig, GPTJForCausalLM

from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.pull import convert
from gptj_predictor.pull.pull import PullRequest, pull
from gptj_predictor.settings import Precision
from gptj_predictor.snapshot.cache import ModelRoot, find_snapshot
from gptj_predictor.snapshot.errors import SnapshotError, SnapshotMissingError
from gptj_predictor.snapshot.folder import CONSTANT_BUFFERS, SnapshotFolder
from gptj_predictor.snapshot.manifest import Manifest
from gptj_predictor.snapshot.verify import find_damage
from gptj_predictor.tokenizer import Tokenizer
from tests.support.hub import Failure, HubServer
from tests.support.pulling import (
    MODEL_ID,
    ROOT,
    demo_weights,
    flip,
    pickled,
    run,
    small_files,
    tree,
)
from tests.support.servers import environment

WEIGHTS = "pytorch_model.bin"

#: Runs a command, then prints the process's peak of resident memory and the modules it imported.
#: VmHWM, since ``ru_maxrss`` also counts the process that started this one.
PULL_AND_MEASURE = """
import json, sys
from pathlib import Path
from gptj_predictor.cli import main

code = main(sys.argv[1:])
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"peak": peak, "modules": sorted(sys.modules)}))
sys.exit(code)
"""

#: Imports the modules named on standard input and does nothing else; prints the same.
IMPORT_AND_MEASURE = """
import contextlib, importlib, json, sys
from pathlib import Path

for name in json.load(sys.stdin):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps({"peak": peak, "modules": sorted(sys.modules)}))
"""


@dataclass(frozen=True)
class Measured:
    """A finished process: its peak of resident memory in bytes, and all modules it had."""

    peak: int
    modules: list[str]


def measure(program: str, *arguments: str, standard_input: str = "", **variables: str) -> Measured:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        input=standard_input,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=True,
    )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def request_(tmp_path: Path) -> PullRequest:
    return PullRequest(MODEL_ID, "main", tmp_path / "cache", retries=2)


def stored(version: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in version.glob("*.safetensors") for k, v in load_file(file).items()}


def wanted(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        name: tensor.to(dtype)
        for name, tensor in demo_weights().items()
        if not name.endswith(CONSTANT_BUFFERS)
    }


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype is tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (Precision.AUTO, torch.bfloat16),
        (Precision.BFLOAT16, torch.bfloat16),
        (Precision.FP16, torch.float16),
        (Precision.NATIVE, torch.float32),
    ],
)
def test_a_pickle_becomes_shards(
    hub: HubServer,
    request_: PullRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(convert, "SHARD_BYTES", 2**20)
    commit = hub.add(MODEL_ID, pickled(tmp_path))
    version = pull(replace(request_, precision=precision))
    assert_same(stored(version), wanted(dtype))
    assert len(list(version.glob("*.safetensors"))) > 3
    manifest = Manifest.read(version)
    assert manifest is not None
    assert (manifest.model_id, manifest.revision, manifest.commit) == (MODEL_ID, "main", commit)
    assert [source["name"] for source in manifest.sources] == [WEIGHTS]
    assert set(manifest.files) | {"manifest.json"} == {path.name for path in version.iterdir()}
    assert find_damage(version, everything=True) == []
    folder = SnapshotFolder.open(version)
    assert folder.dtype is dtype
    assert AutoConfig.from_pretrained(version).dtype is dtype
    assert len(Tokenizer(version)) == len(Tokenizer(DEMO_SNAPSHOT))
    assert find_snapshot(MODEL_ID, request_.cache) == version
    assert find_snapshot(str(request_.cache), Path("/none")) == version
    assert find_snapshot(str(request_.cache / ROOT), Path("/none")) == version
    # Nothing is left but the versions and their pointer.
    assert {path.name for path in (request_.cache / ROOT).iterdir()} == {"CURRENT", "versions"}


def check_modes(folder: Path) -> None:
    """All that is there can be read by everyone."""
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o644), path


def test_all_users_may_read_what_a_pull_writes(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    """safetensors makes its files for the owner alone; so did an earlier release of ours."""
    hub.add(MODEL_ID, pickled(tmp_path))
    before = os.umask(0o022)
    try:
        version = pull(request_)
        weights = next(version.glob("*.safetensors"))
        check_modes(request_.cache)
        for request in (request_, replace(request_, offline=True)):
            weights.chmod(0o600)
            assert pull(request) == version
            check_modes(request_.cache)
    finally:
        os.umask(before)


def test_only_what_is_needed_is_downloaded_and_once(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))
    version = pull(request_)
    assert pull(request_) == version
    for name in ("flax_model.msgpack", "tf_model.h5", "rust_model.ot", "README.md"):
        assert hub.downloads(name) == 0
    for name in (WEIGHTS, "config.json", "tokenizer.json"):
        assert hub.downloads(name) == 1


def test_safetensors_win_over_a_pickle_and_stay_as_they_are(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    weights = tmp_path / "model.safetensors"
    save_file(wanted(torch.float16), weights)
    hub.add(MODEL_ID, {**pickled(tmp_path / "p"), weights.name: weights})
    version = pull(replace(request_, precision=Precision.FP16))
    assert hub.downloads(WEIGHTS) == 0
    assert (version / weights.name).read_bytes() == weights.read_bytes()
    assert find_damage(version, everything=True) == []
    # auto keeps 16 bits, and finds that version's files again for another name.
    assert_same(stored(pull(request_)), wanted(torch.float16))


def test_sharded_sources(hub: HubServer, request_: PullRequest, tmp_path: Path) -> None:
    tensors = demo_weights()
    for stem, suffix in (("pytorch_model", "bin"), ("model", "safetensors")):
        files = small_files()
        weight_map: dict[str, str] = {}
        for number in (1, 2, 3):
            name = f"{stem}-{number:05}-of-00003.{suffix}"
            part = {key: tensors[key] for key in sorted(tensors)[number - 1 :: 3]}
            if suffix == "bin":
                torch.save(part, tmp_path / name)
            else:
                save_file(part, tmp_path / name)
            files[name] = tmp_path / name
            weight_map |= dict.fromkeys(part, name)
        index = f"{stem}.{suffix}.index.json"
        files[index] = json.dumps({"weight_map": weight_map}).encode()
        hub.add(MODEL_ID, files, revision=suffix)
        version = pull(replace(request_, revision=suffix, precision=Precision.BFLOAT16))
        assert_same(stored(version), wanted(torch.bfloat16))


def test_a_new_commit_is_a_new_version(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    hub.add(MODEL_ID, pickled(tmp_path / "1"))
    old = pull(request_)
    hub.add(MODEL_ID, pickled(tmp_path / "2", seed=1))
    new = pull(request_)
    assert new != old
    root = ModelRoot(request_.cache / ROOT)
    assert root.versions() == sorted([old, new])
    assert root.current() == new
    # Back again: nothing to download.
    before = hub.downloads(WEIGHTS)
    commit = Manifest.read(old)
    assert commit is not None
    assert pull(replace(request_, revision=commit.commit)) == old
    assert hub.downloads(WEIGHTS) == before
    assert root.current() == old


def test_a_tag_names_what_its_pull_brought(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    hub.add(MODEL_ID, pickled(tmp_path / "1"))
    old = pull(replace(request_, tag="one"))
    hub.add(MODEL_ID, pickled(tmp_path / "2", seed=1))
    new = pull(replace(request_, tag="two"))
    assert new != old
    for tag, version in (("one", old), ("two", new), (None, new)):
        assert find_snapshot(MODEL_ID, request_.cache, tag) == version
    # A tag goes where its last pull says.
    assert pull(replace(request_, tag="one")) == new
    assert find_snapshot(MODEL_ID, request_.cache, "one") == new


def test_a_malicious_pickle_does_not_run(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    mark = tmp_path / "ran"
    evil = tmp_path / WEIGHTS

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {mark}",)

    torch.save({**demo_weights(), "transformer.x": Bomb()}, evil)
    hub.add(MODEL_ID, {**small_files(), WEIGHTS: evil})
    with pytest.raises(SnapshotError, match="could run code"):
        pull(request_)
    assert not mark.exists()
    evil.write_bytes(pickle.dumps(Bomb()))
    hub.add(MODEL_ID, {**small_files(), WEIGHTS: evil})
    with pytest.raises(SnapshotError, match=r"not a checkpoint of torch|could run code"):
        pull(request_)
    assert not mark.exists()
    assert_nothing_published(request_)


def assert_nothing_published(request: PullRequest) -> None:
    assert ModelRoot(request.cache / ROOT).versions() == []
    with pytest.raises(SnapshotMissingError, match="snapshot pull"):
        find_snapshot(MODEL_ID, request.cache)


PASSING = [
    Failure.DROP,
    Failure.RESET,
    Failure.TRUNCATE,
    Failure.SHORT,
    Failure.status(429, retry_after=0),
    Failure.status(500),
    Failure.status(503),
]


@pytest.mark.parametrize(
    ("name", "failure"),
    # The listing has no digest of its own.
    [
        *product([WEIGHTS, "config.json"], [*PASSING, Failure.CORRUPT]),
        *product(["api/models"], PASSING),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.kind}{value.code or ''}",
)
@pytest.mark.slow
def test_what_passes_is_tried_again(
    hub: HubServer, request_: PullRequest, tmp_path: Path, failure: Failure, name: str
) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))
    hub.fail_next(name, failure, times=2)
    version = pull(request_)
    assert_same(stored(version), wanted(torch.bfloat16))


def test_values_beyond_a_precision(hub: HubServer, request_: PullRequest, tmp_path: Path) -> None:
    tensors = demo_weights()
    tensors["transformer.h.1.mlp.fc_in.weight"][3, 4] = 1e5
    torch.save(tensors, tmp_path / WEIGHTS)
    hub.add(MODEL_ID, {**small_files(), WEIGHTS: tmp_path / WEIGHTS})
    with pytest.raises(SnapshotError, match=r"h\.1\.mlp\.fc_in\.weight has values that float16"):
        pull(replace(request_, precision=Precision.FP16))
    assert_nothing_published(request_)
    pull(replace(request_, precision=Precision.BFLOAT16))


def test_no_network(hub: HubServer, request_: PullRequest, tmp_path: Path) -> None:
    """From the start, and while at work; what came before is kept."""
    hub.add(MODEL_ID, pickled(tmp_path))
    hub.fail_next(WEIGHTS, Failure.RESET, times=100)
    with pytest.raises(SnapshotError, match=r"cannot be reached .*; check the network"):
        pull(request_)
    assert_nothing_published(request_)
    hub.__exit__(None, None, None)
    with pytest.raises(SnapshotError, match=r"cannot be reached .*; check the network"):
        pull(request_)
    with HubServer() as other, pytest.MonkeyPatch.context() as patch:
        other.add(MODEL_ID, pickled(tmp_path))
        patch.setattr("huggingface_hub.constants.ENDPOINT", other.endpoint)
        patch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            other.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        pull(request_)
        assert other.downloads("config.json") == 0


@pytest.mark.slow
def test_a_hub_that_hangs(hub: HubServer, request_: PullRequest, tmp_path: Path) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))
    hub.fail_next(WEIGHTS, Failure.hang(2.0), times=1)
    assert_same(stored(pull(request_)), wanted(torch.bfloat16))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (Failure.CORRUPT, "another digest than the hub lists"),
        (Failure.status(500), "answered 500; try again later"),
        (Failure.status(403), "answered 403; check HF_TOKEN"),
        (Failure.status(404), "answered 404"),
    ],
    ids=["corrupt", "500", "403", "404"],
)
def test_what_does_not_pass_is_said(
    hub: HubServer, request_: PullRequest, tmp_path: Path, failure: Failure, message: str
) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))
    hub.fail_next(WEIGHTS, failure, times=100)
    with pytest.raises(SnapshotError, match=message) as caught:
        pull(request_)
    assert "\n" not in str(caught.value)
    assert WEIGHTS in str(caught.value)
    assert_nothing_published(request_)


def test_gated(
    hub: HubServer, request_: PullRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(MODEL_ID, pickled(tmp_path), gated_token="secret")
    with pytest.raises(SnapshotError, match="set HF_TOKEN"):
        pull(request_)
    assert_nothing_published(request_)
    monkeypatch.setenv("HF_TOKEN", "secret")
    pull(request_)
    # The CDN is another host; the token is none of its business.
    assert not any("cdn" in seen.path and seen.authorization for seen in hub.seen)


def test_unknown_model_and_revision(hub: HubServer, request_: PullRequest, tmp_path: Path) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))
    with pytest.raises(SnapshotError, match="no such model"):
        pull(replace(request_, model_id="nobody/nothing"))
    assert not (request_.cache / "nobody-nothing").exists()
    with pytest.raises(SnapshotError, match="no such revision"):
        pull(replace(request_, revision="absent"))
    with pytest.raises(SnapshotError, match="OWNER/NAME"):
        pull(replace(request_, model_id="a/b/c"))


def test_not_a_gptj(hub: HubServer, request_: PullRequest, tmp_path: Path) -> None:
    config = json.loads((DEMO_SNAPSHOT / "config.json").read_text())
    cases: list[tuple[str, dict[str, bytes | Path], str]] = [
        ("none", {"config.json": b""}, "no config.json"),
        ("gpt2", {"config.json": GPT2Config().to_json_string().encode()}, "only 'gptj'"),
        ("json", {"config.json": b"{"}, "cannot be read as JSON"),
        ("sizes", {"config.json": json.dumps(config | {"n_embd": 96}).encode()}, "asks for"),
        ("layers", {"config.json": json.dumps(config | {"n_layer": 99}).encode()}, "no tensor"),
        ("weights", {WEIGHTS: b""}, "no weights in safetensors"),
        ("pickle", {WEIGHTS: b"PK\3\4" + b"x" * 3000}, "not a checkpoint of torch"),
    ]
    for name, change, message in cases:
        files = {**pickled(tmp_path / name), **change}
        files = {key: value for key, value in files.items() if value != b""}
        hub.add(MODEL_ID, files, revision=name)
        with pytest.raises(SnapshotError, match=message):
            pull(replace(request_, revision=name))
        assert_nothing_published(request_)


def test_offline(hub: HubServer, request_: PullRequest, tmp_path: Path) -> None:
    offline = replace(request_, offline=True)
    with pytest.raises(SnapshotError, match="pull once without --offline"):
        pull(offline)
    hub.add(MODEL_ID, pickled(tmp_path))
    hub.fail_next(WEIGHTS, Failure.status(404), times=1)
    with pytest.raises(SnapshotError):
        pull(request_)
    with pytest.raises(SnapshotError, match=f"{WEIGHTS} of {MODEL_ID} was not downloaded"):
        pull(offline)
    version = pull(request_)
    count = len(hub.seen)
    assert pull(offline) == version
    with pytest.raises(SnapshotError, match="pull once without --offline"):
        pull(replace(offline, revision="other"))
    assert len(hub.seen) == count


def test_offline_converts_what_was_downloaded(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))
    pull(replace(request_, keep_source=True))
    assert list((request_.cache / ROOT / "pull").glob(f"source-*/{WEIGHTS}"))
    count = len(hub.seen)
    version = pull(replace(request_, offline=True, precision=Precision.FP16))
    assert_same(stored(version), wanted(torch.float16))
    assert len(hub.seen) == count
    assert not (request_.cache / ROOT / "pull").exists()


def test_a_damaged_version_is_made_anew(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))
    version = pull(request_)
    flip(next(version.glob("*.safetensors")))
    assert pull(request_) == version  # sizes alone do not show it
    again = pull(replace(request_, verify=True))
    assert again.name == f"{version.name}-r2"
    assert find_damage(again, everything=True) == []
    assert pull(replace(request_, verify=True)) == again
    assert ModelRoot(request_.cache / ROOT).current() == again


def test_damage_from_discovery_to_removal(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    """What verify and info say while a damaged version is served, replaced, and removed."""
    cache = str(request_.cache)
    hub.add(MODEL_ID, pickled(tmp_path))
    old = pull(request_)
    flip(next(old.glob("*.safetensors")))
    assert run("info", cache).returncode == 0  # nobody has read it yet
    done = run("verify", cache)
    assert done.returncode == 1
    assert f"--dest {cache} --verify" in done.stderr
    done = run("info", cache)
    assert done.returncode == 1
    assert "SHA-256 is not the manifest's" in done.stderr

    new = pull(request_)  # it knows, without reading everything again
    assert new.name == f"{old.name}-r2"
    done = run("verify", cache)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"{new}: whole" in lines
    assert f"run: gptj-predictor snapshot prune {old.parent.parent}" in done.stdout
    assert "snapshot pull" not in done.stdout + done.stderr
    done = run("info", cache)
    assert done.returncode == 0, done.stderr
    assert f"    {old.name}: {MODEL_ID} at main" in done.stdout
    assert "NOT WHOLE" in done.stdout
    assert "(superseded; snapshot prune removes it)" in done.stdout
    (root,) = json.loads(run("info", cache, "--json").stdout)
    assert [
        (version["whole"], version["superseded"], version["current"])
        for version in root["versions"]
    ] == [(False, True, False), (True, False, True)]
    assert "is not the manifest's" in root["versions"][0]["problem"]

    done = run("prune", cache)
    assert done.stdout == f"{old}: removed\n"
    assert run("verify", cache).stdout == f"{new}: whole\n"
    assert set(tree(request_.cache / ROOT)) == {
        "CURRENT",
        *(f"versions/{new.name}/{path.name}" for path in new.iterdir()),
    }


def test_a_killed_move_of_servable_files_goes_on(
    hub: HubServer, request_: PullRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are taken as they are move as one folder; a kill after that loses no download."""
    weights = tmp_path / "model.safetensors"
    save_file(wanted(torch.float16), weights)
    hub.add(MODEL_ID, {**small_files(), weights.name: weights})

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    for moment in ("describe.describe_files", "describe.check_tensors", "publish.sync_tree"):
        with monkeypatch.context() as patch:
            patch.setattr(f"gptj_predictor.pull.{moment}", kill)
            with pytest.raises(Killed):
                pull(request_)
    version = pull(request_)
    assert hub.downloads(weights.name) == 1
    assert find_damage(version, everything=True) == []
    assert set(tree(request_.cache / ROOT)) == {
        "CURRENT",
        *(f"versions/{version.name}/{path.name}" for path in version.iterdir()),
    }


def test_what_a_killed_conversion_half_wrote_is_not_published(
    hub: HubServer, request_: PullRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))

    class Killed(BaseException):
        pass

    def kill(new: Path, _: Path) -> None:
        (new.parent / ".tmpUIo0f").write_bytes(b"half")  # safetensors writes under such names
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("gptj_predictor.pull.convert.put_in_place", kill)
        with pytest.raises(Killed):
            pull(request_)
    left = {path.name for path in request_.cache.glob(f"{ROOT}/pull/build-*/*")}
    assert ".tmpUIo0f" in left
    version = pull(request_)
    assert not [path for path in version.iterdir() if path.name[0] == "." or path.suffix == ".new"]
    assert find_damage(version, everything=True) == []


@pytest.mark.process
@pytest.mark.parametrize("quantization", ["none", pytest.param("int8", marks=pytest.mark.large)])
def test_peak_memory(tmp_path: Path, quantization: str) -> None:
    """A pull adds less than the largest tensor plus 610 MiB, whatever the checkpoint's size.

    That is beside the imports, whose size differs between builds of torch.
    """
    with HubServer() as hub:
        tensors = {}
        config = json.loads((DEMO_SNAPSHOT / "config.json").read_text())
        config |= {"n_embd": 2048, "n_layer": 6, "n_head": 8, "rotary_dim": 64, "n_inner": None}
        with init_empty_weights():
            shapes = GPTJForCausalLM(GPTJConfig(**config)).state_dict()
        for name, tensor in shapes.items():
            tensors[name] = torch.zeros(tensor.shape)
        torch.save(tensors, tmp_path / WEIGHTS)
        size = (tmp_path / WEIGHTS).stat().st_size
        largest = max(tensor.nbytes for tensor in tensors.values())
        files = {**small_files(), "config.json": json.dumps(config).encode()}
        hub.add(MODEL_ID, {**files, WEIGHTS: tmp_path / WEIGHTS})
        del tensors
        pulled = measure(
            PULL_AND_MEASURE,
            *("snapshot", "pull", "--dest", str(tmp_path / "c"), "--precision", "fp16"),
            *("--quantization", quantization),
            HF_ENDPOINT=hub.endpoint,
        )
    imported = measure(IMPORT_AND_MEASURE, standard_input=json.dumps(pulled.modules))
    assert imported.modules == pulled.modules
    added = pulled.peak - imported.peak
    print(f"{added / 1e9:.2f} GB for a {size / 1e9:.2f} GB pickle")
    assert size > 2**30
    assert added < largest + 610 * 2**20


@pytest.mark.process
class TestVolumes:
    """Volumes that cannot be written, as a process meets them."""

    @pytest.fixture(autouse=True)
    def _needs_mounts(self) -> None:
        if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount a volume")

    def pull(self, hub: HubServer, mount: str, volume: Path, spare: int = 0) -> str:
        """Pull in a process of its own that sees a volume mounted; its last line."""
        volume.mkdir()
        program = (
            "import sys; from gptj_predictor.pull import job;"
            f"job.SPARE_BYTES = {spare}; from gptj_predictor.cli import main;"
            "sys.exit(main(sys.argv[1:]))"
        )
        done = subprocess.run(
            [
                *("unshare", "-rm", "sh", "-c", f'{mount} "$0" && exec "$@"', str(volume)),
                *(sys.executable, "-c", program, "snapshot", "pull", "--dest", str(volume)),
            ],
            env=environment(HF_ENDPOINT=hub.endpoint),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    def test_too_small(self, hub: HubServer, tmp_path: Path) -> None:
        hub.add(MODEL_ID, pickled(tmp_path / "m"))
        line = self.pull(hub, "mount -t tmpfs -o size=14m t", tmp_path / "v")
        assert "14.7MB free and this pull needs 1" in line
        assert "snapshot prune" in line
        assert hub.downloads(WEIGHTS) == 0

    @pytest.mark.parametrize("size", [8, 14])
    def test_full_while_at_work(self, hub: HubServer, tmp_path: Path, size: int) -> None:
        """Others fill it: while the pickle comes (10.3 MB), or while it is converted."""
        hub.add(MODEL_ID, pickled(tmp_path / "m"))
        mount = f"mount -t tmpfs -o size={size}m t"
        line = self.pull(hub, mount, tmp_path / "v", spare=-(10**12))
        assert "the volume is full; make room and pull again" in line

    def test_read_only(self, hub: HubServer, tmp_path: Path) -> None:
        hub.add(MODEL_ID, pickled(tmp_path / "m"))
        line = self.pull(hub, "mount -t tmpfs -o ro t", tmp_path / "v")
        assert "the volume is read-only; mount it writable" in line


def test_no_permission(
    hub: HubServer, request_: PullRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the refusal is the kernel's only for others."""
    hub.add(MODEL_ID, pickled(tmp_path))
    request_.cache.mkdir(mode=0o555)
    if os.geteuid() == 0:

        def refuse(path: Path, *_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SnapshotError, match="no permission to write"):
        pull(request_)
