"""Snapshots that store int8 weights: the same bits as when they are made while loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.layout import NetworkLayout
from gptj_predictor.snapshot.load import check_tensors, load_network
from tests.support.engines import CPU
from tests.support.quantized import store_int8
from tests.support.reference import ReferenceModel, make_reference

SHAPE = {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "vocab_size": 50}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
OUT_PROJ, FC_OUT = "transformer.h.0.attn.out_proj.weight", "transformer.h.0.mlp.fc_out.weight"


def load_int8(folder: Path, dtype: torch.dtype) -> GPTJNetwork:
    snapshot = SnapshotFolder.open(folder)
    placement = Placement.on(CPU, snapshot.config.n_layer)
    return load_network(snapshot, dtype, placement, quantization="int8")


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are where they were put, and can be compared."""
    monkeypatch.setattr(NetworkBuilder, "packs", lambda *_: False)


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_or_made_while_loading(
    reference: ReferenceModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    """From an fp32 checkpoint: both round it to the dtype that is served, and then to int8."""
    stored = store_int8(reference.folder, tmp_path / "int8", dtype)
    made, read = (load_int8(folder, dtype) for folder in (reference.folder, stored))
    assert made.quantization == read.quantization == "int8"
    assert made.weights.keys() == read.weights.keys()
    for name, weight in made.weights.items():
        assert weight.dtype is read.weights[name].dtype
        assert weight.equal(read.weights[name]), name
    kinds = {name: weight.dtype for name, weight in read.weights.items()}
    tied = reference.model.config.tie_word_embeddings
    assert kinds["layers.0.project_in.weight"] is kinds["layers.0.project_out.weight"] is torch.int8
    assert kinds.get("head.weight") is (None if tied else torch.int8)
    assert kinds["embedding.weight"] is kinds["norm.bias"] is dtype


@pytest.mark.usefixtures("unpacked")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_16_bits(tmp_path: Path, stored: torch.dtype) -> None:
    model = make_reference(tmp_path / "snapshot", seed=1, **SHAPE)
    model.to(stored).save_pretrained(model.folder)
    folder = store_int8(model.folder, tmp_path / "int8", stored)
    made, read = (load_int8(one, stored) for one in (model.folder, folder))
    assert all(weight.equal(read.weights[name]) for name, weight in made.weights.items())


def test_weights_of_gptj_6b() -> None:
    """At most 0.55 of what they are in bfloat16, scales and all that stays 16 bits counted."""
    quantized, plain = (
        sum(NetworkLayout(NetworkConfig(), kind).part_bytes(torch.bfloat16))
        for kind in ("int8", "none")
    )
    assert quantized <= 0.55 * plain
    assert (quantized / 1e9, plain / 1e9) == pytest.approx((6.3, 12.1), abs=0.05)  # as docs say


def test_what_a_network_counts(tmp_path: Path) -> None:
    model = make_reference(tmp_path / "snapshot", seed=1, **SHAPE)
    layout = NetworkLayout(SnapshotFolder.open(model.folder).config, "int8")
    network = load_int8(model.folder, torch.bfloat16)
    assert network.weight_bytes == sum(layout.part_bytes(torch.bfloat16))


class TestRefused:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        model = make_reference(tmp_path / "snapshot", seed=1, **SHAPE)
        return store_int8(model.folder, tmp_path / "int8", torch.bfloat16)

    def refusal(self, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> str:
        [file] = folder.glob("*.safetensors")
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        with pytest.raises(SnapshotError) as caught:
            check_tensors(SnapshotFolder.open(folder))
        return str(caught.value)

    def test_no_scales(self, folder: Path) -> None:
        text = self.refusal(folder, lambda tensors: tensors.pop(f"{FC_OUT}_scale"))
        assert f"tensor {FC_OUT}_scale is missing" in text

    def test_scales_of_another_shape(self, folder: Path) -> None:
        text = self.refusal(folder, lambda t: t.update({f"{FC_OUT}_scale": torch.ones(1)}))
        assert f"{FC_OUT}_scale has shape [1]; config.json asks for [32]" in text

    def test_scales_of_another_dtype(self, folder: Path) -> None:
        def halve(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"{FC_OUT}_scale"] = tensors[f"{FC_OUT}_scale"].half()

        text = self.refusal(folder, halve)
        assert f"{FC_OUT}_scale is stored as float16" in text
        assert "it must be float32" in text

    @pytest.mark.parametrize("rows", [(0,), (17, 31)])
    def test_scales_that_differ_in_one_row(self, folder: Path, rows: tuple[int, ...]) -> None:
        """A row of the fused weight has one scale: of two, the one read last would win."""

        def double(tensors: dict[str, torch.Tensor]) -> None:
            tensors[f"{FC_OUT}_scale"][list(rows)] *= 2

        text = self.refusal(folder, double)
        assert f"tensors {OUT_PROJ}_scale and {FC_OUT}_scale differ from row {rows[0]} on" in text

    def test_some_weights_only(self, folder: Path) -> None:
        def widen(tensors: dict[str, torch.Tensor]) -> None:
            tensors[OUT_PROJ] = tensors[OUT_PROJ].bfloat16()

        text = self.refusal(folder, widen)
        assert f"{OUT_PROJ} is stored as bfloat16" in text
        assert "it must be int8" in text

    def test_the_embedding(self, folder: Path) -> None:
        def narrow(tensors: dict[str, torch.Tensor]) -> None:
            name = "transformer.wte.weight"
            tensors[name] = tensors[name].to(torch.int8)

        text = self.refusal(folder, narrow)
        assert "wte.weight is stored as int8, which only weights of products can be" in text

    def test_scales_without_int8(self, folder: Path) -> None:
        def widen(tensors: dict[str, torch.Tensor]) -> None:
            for name, tensor in tensors.items():
                if tensor.dtype is torch.int8:
                    tensors[name] = tensor.bfloat16()

        assert "weight_scale and " in self.refusal(folder, widen)

    def test_a_network_that_is_not_quantized(self, folder: Path) -> None:
        snapshot = SnapshotFolder.open(folder)
        with pytest.raises(ValueError, match="int8"):
            load_network(snapshot, torch.bfloat16, Placement.on(CPU, 2))
