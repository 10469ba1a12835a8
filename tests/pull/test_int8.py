"""Pulling with int8 weights: what is stored, and how it is told from other versions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GPTJForCausalLM

from gptj_predictor.common import files
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.pull import convert
from gptj_predictor.pull.pull import PullRequest, pull
from gptj_predictor.settings import Precision, Quantization
from gptj_predictor.snapshot.advice import repull_command
from gptj_predictor.snapshot.cache import ModelRoot
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import CONSTANT_BUFFERS, SnapshotFolder
from gptj_predictor.snapshot.load import check_tensors
from gptj_predictor.snapshot.manifest import MANIFEST_FILE, Manifest
from gptj_predictor.snapshot.verify import find_damage
from gptj_predictor.tokenizer import Tokenizer
from tests.support.hub import HubServer
from tests.support.pulling import (
    MODEL_ID,
    ROOT,
    demo_weights,
    flip,
    pickled,
    publish,
    run,
    small_files,
)

DTYPES = {
    Precision.BFLOAT16: torch.bfloat16,
    Precision.FP16: torch.float16,
    Precision.NATIVE: torch.float32,
}
#: Of the demo's layers: the ends of the names of what is multiplied with.
ROWS = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in")
COLUMNS = ("attn.out_proj", "mlp.fc_out")


@pytest.fixture
def request_(tmp_path: Path) -> PullRequest:
    return PullRequest(
        MODEL_ID, "main", tmp_path / "cache", retries=2, quantization=Quantization.INT8
    )


def stored(version: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in version.glob("*.safetensors") for k, v in load_file(file).items()}


def expected(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What must be stored of the demo's weights, by numpy's arithmetic and from the formula."""
    weights = {
        name: tensor.to(dtype)
        for name, tensor in demo_weights().items()
        if not name.endswith(CONSTANT_BUFFERS)
    }
    layers = sorted({name.split(".")[2] for name in weights if ".h." in name})
    rows = [[f"transformer.h.{layer}.{name}.weight"] for layer in layers for name in ROWS]
    sharers = [[f"transformer.h.{layer}.{name}.weight" for name in COLUMNS] for layer in layers]
    for names in [["lm_head.weight"], *rows, *sharers]:
        values = [weights[name].float().numpy() for name in names]
        largest = np.abs(np.concatenate(values, axis=1)).max(axis=1)
        scales = (largest / np.float32(127)).astype(np.float32)
        for name, value in zip(names, values, strict=True):
            integers = np.rint(value / scales[:, None]).clip(-127, 127).astype(np.int8)
            weights[name] = torch.from_numpy(integers)
            weights[f"{name}_scale"] = torch.from_numpy(scales)
    return weights


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype is tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("precision", list(DTYPES))
def test_a_pickle_becomes_int8(
    hub: HubServer,
    request_: PullRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
) -> None:
    monkeypatch.setattr(convert, "SHARD_BYTES", 2**20)
    dtype = DTYPES[precision]
    commit = hub.add(MODEL_ID, pickled(tmp_path))
    version = pull(replace(request_, precision=precision))
    assert version.name == f"{commit[:12]}-{precision}-int8"
    assert len(list(version.glob("*.safetensors"))) > 1
    assert_same(stored(version), expected(dtype))
    assert find_damage(version, everything=True) == []
    manifest = Manifest.read(version)
    assert manifest is not None
    assert (manifest.precision, manifest.quantization) == (precision, "int8")
    folder = SnapshotFolder.open(version)
    check_tensors(folder)
    assert (folder.quantization, folder.dtype) == ("int8", dtype)
    assert folder.parameters == SnapshotFolder.open(DEMO_SNAPSHOT).parameters
    assert AutoConfig.from_pretrained(version).dtype is dtype
    assert len(Tokenizer(version)) == len(Tokenizer(DEMO_SNAPSHOT))


def test_it_is_half_as_large(hub: HubServer, request_: PullRequest, tmp_path: Path) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))
    sizes = {
        quantization: sum(
            tensor.nbytes
            for name, tensor in stored(pull(replace(request_, quantization=quantization))).items()
            if not name.endswith("wte.weight")
        )
        for quantization in (Quantization.NONE, Quantization.INT8)
    }
    assert sizes[Quantization.INT8] < 0.55 * sizes[Quantization.NONE]


def test_both_kinds_beside_each_other(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    """Neither is taken for the other, with the network and without."""
    hub.add(MODEL_ID, pickled(tmp_path))
    quantized = pull(replace(request_, tag="int8"))
    for quantization in (Quantization.AUTO, Quantization.NONE):
        plain = pull(replace(request_, quantization=quantization))
        assert plain.name == quantized.name.removesuffix("-int8")
        assert pull(replace(request_, quantization=quantization, offline=True)) == plain
    assert pull(request_) == quantized
    assert pull(replace(request_, offline=True)) == quantized
    root = ModelRoot(request_.cache / ROOT)
    assert root.versions() == [plain, quantized]
    assert root.tagged("int8") == quantized


def test_commands_name_it(hub: HubServer, request_: PullRequest, tmp_path: Path) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))
    version, cache = pull(request_), str(request_.cache)
    assert ", bfloat16 with int8 weights, " in run("info", cache).stdout
    (root,) = json.loads(run("info", cache, "--json").stdout)
    assert root["versions"][0]["quantization"] == "int8"
    assert f"{version.name}: whole" in run("verify", cache).stdout
    manifest = Manifest.read(version)
    assert manifest is not None
    assert "--precision bfloat16 --quantization int8 --dest" in repull_command(
        manifest, request_.cache
    )
    flip(next(version.glob("*.safetensors")))
    done = run("verify", cache)
    assert done.returncode == 1
    assert "--quantization int8" in done.stderr
    assert pull(replace(request_, verify=True)).name == f"{version.name}-r2"


def test_the_command_line(
    hub: HubServer, tmp_path: Path, request_: PullRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(MODEL_ID, pickled(tmp_path))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    done = run("pull", "--dest", str(request_.cache), "--quantization", "int8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("-bfloat16-int8")
    assert "converting to bfloat16 with int8 weights" in done.stderr


def test_a_killed_conversion_goes_on(
    hub: HubServer, request_: PullRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards are cut where out_proj and fc_out, which share scales, are in two of them."""
    monkeypatch.setattr(convert, "SHARD_BYTES", 64 * 2**10)
    hub.add(MODEL_ID, pickled(tmp_path))

    class Killed(BaseException):
        pass

    calls = 0

    def kill(new: Path, file: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Killed
        files.put_in_place(new, file)

    with monkeypatch.context() as patch:
        patch.setattr(convert, "put_in_place", kill)
        with pytest.raises(Killed):
            pull(request_)
    version = pull(request_)
    assert_same(stored(version), expected(torch.bfloat16))
    assert find_damage(version, everything=True) == []


def test_values_beyond_a_precision(hub: HubServer, request_: PullRequest, tmp_path: Path) -> None:
    """Also where the tensor is only looked at for the scales that another shares with it."""
    tensors = demo_weights()
    tensors["transformer.h.1.mlp.fc_out.weight"][3, 4] = 1e5
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    hub.add(MODEL_ID, {**small_files(), "pytorch_model.bin": tmp_path / "pytorch_model.bin"})
    with pytest.raises(SnapshotError, match=r"h\.1\.mlp\.fc_out\.weight has values that float16"):
        pull(replace(request_, precision=Precision.FP16))
    pull(request_)


def test_a_checkpoint_that_is_int8_already(
    hub: HubServer, request_: PullRequest, tmp_path: Path
) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in expected(torch.bfloat16).items()}, file)
    hub.add(MODEL_ID, {**small_files(), file.name: file})
    for quantization in Quantization:
        for precision in (Precision.NATIVE, Precision.BFLOAT16):
            with pytest.raises(SnapshotError, match="as int8; a pull makes int8 weights itself"):
                pull(replace(request_, quantization=quantization, precision=precision))


def test_transformers_warns_of_it(
    hub: HubServer, request_: PullRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the integers for the weights, but not in silence."""
    warnings: list[str] = []
    monkeypatch.setattr("transformers.quantizers.auto.logger.warning", warnings.append)
    hub.add(MODEL_ID, pickled(tmp_path))
    GPTJForCausalLM.from_pretrained(pull(request_))
    assert "Unknown quantization type, got gptj-predictor" in warnings[0]


class TestManifest:
    def test_one_from_before_int8(self, tmp_path: Path) -> None:
        """It says nothing of quantization, and its digest holds as it is."""
        version = publish(tmp_path)
        content = json.loads((version / MANIFEST_FILE).read_text())
        assert "quantization" not in content
        assert content["format"] == 1
        manifest = Manifest.read(version)
        assert manifest is not None
        assert manifest.quantization == "none"

    def test_older_programs_refuse_int8_by_its_format(self, tmp_path: Path) -> None:
        version = publish(tmp_path)
        manifest = Manifest.read(version)
        assert manifest is not None
        replace(manifest, quantization="int8").write(version)
        assert json.loads((version / MANIFEST_FILE).read_text())["format"] == 2
        again = Manifest.read(version)
        assert again is not None
        assert again.quantization == "int8"

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"quantization": "int4"}, "has quantization 'int4'; this version reads none and int8"),
            ({"quantization": "none"}, "is damaged"),
            ({"format": 1}, "is damaged"),
            ({"format": 3}, "has format 3; this version reads 1 and 2"),
        ],
    )
    def test_others(self, tmp_path: Path, change: dict[str, object], complaint: str) -> None:
        version = publish(tmp_path)
        manifest = Manifest.read(version)
        assert manifest is not None
        replace(manifest, quantization="int8").write(version)
        file = version / MANIFEST_FILE
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(SnapshotError, match=complaint):
            Manifest.read(version)
