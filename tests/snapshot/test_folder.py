"""Folders that can be served, and a clear word about each one that cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import check_tensors
from tests.support.engines import checkpoint_tensors, load
from tests.support.reference import ReferenceModel, make_reference

SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "vocab_size": 50}
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tmp_path: Path) -> ReferenceModel:
    return make_reference(tmp_path / "snapshot", seed=1, **SHAPE)


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Every tensor as it lies in a network that is not packed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkBuilder, "packs", lambda *_: False)
        return checkpoint_tensors(load(folder, dtype))


def edit_json(file: Path, **values: Any) -> None:
    raw = json.loads(file.read_text()) | values
    file.write_text(json.dumps(raw))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def shard(folder: Path, count: int = 3) -> Path:
    """Split the weights as large checkpoints are; return the index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    weight_map: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::count]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def refusal(folder: Path) -> str:
    """The one line that says why; nothing may be left to find out later."""
    with pytest.raises(SnapshotError) as caught:
        check_tensors(SnapshotFolder.open(folder))
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_to_every_dtype(
    model: ReferenceModel, stored: torch.dtype, dtype: torch.dtype
) -> None:
    model.to(stored).save_pretrained(model.folder)
    assert SnapshotFolder.open(model.folder).dtype is stored
    views = loaded(model.folder, dtype)
    for name, tensor in model.model.state_dict().items():
        torch.testing.assert_close(views[name], tensor.to(dtype), rtol=0, atol=0)
    assert set(views) == set(model.model.state_dict())


def test_shards(model: ReferenceModel) -> None:
    whole = loaded(model.folder)
    shard(model.folder)
    for name, tensor in loaded(model.folder).items():
        assert torch.equal(tensor, whole[name])


def test_native_is_what_most_of_the_weights_are(model: ReferenceModel) -> None:
    model.to(torch.float16).save_pretrained(model.folder)

    def norms_to_fp32(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: t.float() for name, t in tensors.items() if "ln_" in name})

    edit_weights(model.folder, norms_to_fp32)
    assert SnapshotFolder.open(model.folder).dtype is torch.float16


def test_constant_buffers_of_old_checkpoints_are_passed_over(model: ReferenceModel) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e9)

    edit_weights(model.folder, add)
    assert "transformer.h.0.attn.bias" not in loaded(model.folder)


def test_tied_with_and_without_a_head(tmp_path: Path) -> None:
    model = make_reference(tmp_path, seed=1, **SHAPE, tie_word_embeddings=True)
    assert "lm_head.weight" not in loaded(model.folder)
    edit_weights(
        model.folder,
        lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"] + 0}),
    )
    assert "lm_head.weight" not in loaded(model.folder)


class TestRefused:
    def test_no_folder(self, tmp_path: Path) -> None:
        assert "does not exist" in refusal(tmp_path / "nothing")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        assert "not a folder" in refusal(tmp_path / "file")

    def test_empty_folder(self, tmp_path: Path) -> None:
        assert "config.json is missing" in refusal(tmp_path)

    def test_config_that_is_no_json(self, model: ReferenceModel) -> None:
        (model.folder / "config.json").write_text("{")
        assert "config.json cannot be read as JSON" in refusal(model.folder)

    def test_config_that_is_no_object(self, model: ReferenceModel) -> None:
        (model.folder / "config.json").write_text("[]")
        assert "not a JSON object" in refusal(model.folder)

    def test_another_architecture(self, tmp_path: Path) -> None:
        other = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9))
        other.save_pretrained(tmp_path)
        assert "'gpt2'; only 'gptj'" in refusal(tmp_path)

    @pytest.mark.parametrize(
        ("name", "value", "named"),
        [
            ("n_layer", "two", "n_layer"),
            ("n_embd", 33, "not a multiple of n_head 2"),
            ("n_head", 0, "n_head is 0"),
            ("rotary_dim", 7, "rotary_dim 7 must be even"),
            ("rotary_dim", 64, "at most the head size 16"),
            ("rotary_dim", 0, "rotary_dim 0"),
        ],
    )
    def test_config_values(
        self, model: ReferenceModel, name: str, value: object, named: str
    ) -> None:
        edit_json(model.folder / "config.json", **{name: value})
        text = refusal(model.folder)
        assert "config.json" in text
        assert named in text

    def test_no_weights(self, model: ReferenceModel) -> None:
        (model.folder / WEIGHTS).unlink()
        assert f"neither {WEIGHTS} nor" in refusal(model.folder)

    def test_a_pickle_only_is_not_opened(self, model: ReferenceModel) -> None:
        """Opening this one would leave a file behind."""
        trap = model.folder / "trap"

        class Malicious:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (trap,))

        (model.folder / WEIGHTS).unlink()
        torch.save(Malicious(), model.folder / "pytorch_model.bin")
        text = refusal(model.folder)
        assert "pytorch_model.bin" in text
        assert "pickle" in text
        assert not trap.exists()

    @pytest.mark.parametrize("left", [0, 4, 100, 5000, -1])
    def test_truncated(self, model: ReferenceModel, left: int) -> None:
        file = model.folder / WEIGHTS
        file.write_bytes(file.read_bytes()[:left])
        assert f"{WEIGHTS} is not a whole safetensors file" in refusal(model.folder)

    def test_missing_tensor(self, model: ReferenceModel) -> None:
        def remove(tensors: dict[str, torch.Tensor]) -> None:
            del tensors["transformer.h.1.mlp.fc_out.bias"]

        edit_weights(model.folder, remove)
        assert "transformer.h.1.mlp.fc_out.bias is missing" in refusal(model.folder)

    def test_foreign_tensors(self, model: ReferenceModel) -> None:
        edit_weights(
            model.folder, lambda t: t.update({"adapter.a": torch.ones(1), "b": torch.ones(1)})
        )
        assert "adapter.a and 1 more is not part of a GPT-J" in refusal(model.folder)

    def test_wrong_shape(self, model: ReferenceModel) -> None:
        edit_weights(model.folder, lambda t: t.update({"lm_head.bias": torch.ones(49)}))
        text = refusal(model.folder)
        assert "lm_head.bias has shape [49]" in text
        assert "asks for [50]" in text

    def test_more_layers_than_the_config_says(self, model: ReferenceModel) -> None:
        edit_json(model.folder / "config.json", n_layer=1)
        assert "transformer.h.1." in refusal(model.folder)

    def test_integers(self, model: ReferenceModel) -> None:
        edit_weights(
            model.folder,
            lambda t: t.update({"lm_head.bias": torch.ones(50, dtype=torch.int8)}),
        )
        assert "lm_head.bias is stored as I8; allowed are BF16, F16, F32" in refusal(model.folder)

    def test_missing_shard(self, model: ReferenceModel) -> None:
        shard(model.folder)
        (model.folder / "model-00002-of-00003.safetensors").unlink()
        assert "model-00002-of-00003.safetensors is missing" in refusal(model.folder)

    @pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
    def test_index_without_a_map(self, model: ReferenceModel, index: object) -> None:
        shard(model.folder).write_text(json.dumps(index))
        assert "has no weight_map" in refusal(model.folder)

    def test_index_that_points_elsewhere(self, model: ReferenceModel) -> None:
        edit_json(shard(model.folder), weight_map={"a": "../../other.safetensors"})
        assert "not a plain file name" in refusal(model.folder)
