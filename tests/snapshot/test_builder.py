"""A network comes out of its builder whole, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import Placement
from gptj_predictor.model.torch_attention import TorchAttention
from gptj_predictor.snapshot.builder import NetworkBuilder
from tests.support.engines import CPU, checkpoint_tensors
from tests.support.reference import make_reference

SHAPE: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "vocab_size": 20}


def new_builder(**more: object) -> NetworkBuilder:
    return NetworkBuilder(NetworkConfig(**(SHAPE | more)), torch.float32, Placement.on(CPU, 2))


def test_nothing_given() -> None:
    builder = new_builder()
    others = len(builder.layout.parameters) - 1
    with pytest.raises(ValueError, match=rf"no embedding\.weight and {others} more yet"):
        builder.finish()


@pytest.mark.parametrize("tied", [False, True])
def test_one_parameter_missing(tied: bool) -> None:
    builder = new_builder(tie_word_embeddings=tied)
    *others, last = builder.layout.parameters
    for name in others:
        builder.put(name, builder.allocate(name))
    with pytest.raises(ValueError, match=r"the network has no head\.bias yet"):
        builder.finish()
    builder.put(last, builder.allocate(last))
    network = builder.finish()
    assert network.weights.keys() == builder.layout.parameters.keys()
    assert network.weight_bytes == sum(builder.layout.part_bytes(torch.float32))
    assert isinstance(network.attentions[CPU], TorchAttention)


def test_one_tensor_of_a_fused_weight_missing() -> None:
    builder = new_builder()
    for name, place in builder.layout.places.items():
        if name != "transformer.h.1.attn.k_proj.weight":
            builder.fill(name, torch.zeros(place.shape))
    with pytest.raises(ValueError, match=r"the network has no layers\.1\.project_in\.weight yet"):
        builder.finish()


def test_filled_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NetworkBuilder, "packs", lambda *_: False)
    model = make_reference(tmp_path, seed=1, **SHAPE).model
    builder = new_builder()
    for name, tensor in reversed(model.state_dict().items()):
        builder.fill(name, tensor.double())
    network = builder.finish()
    found = checkpoint_tensors(network)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    assert network.weights["layers.0.project_in.bias"][: 3 * 16].eq(0).all()


def test_tensor_that_belongs_to_something_else() -> None:
    with pytest.raises(KeyError):
        new_builder().fill("adapter.a", torch.zeros(1))


def test_packed_memory_is_the_callers_again() -> None:
    builder = new_builder()
    name = "layers.0.project_out.weight"
    assert builder.packs(name), "oneDNN computes in float32 on every CPU"
    for parameter in builder.layout.parameters:
        memory = builder.allocate(parameter).fill_(2)
        builder.put(parameter, memory)
        if builder.packs(parameter):
            memory.zero_()
    packed = builder.finish().weights[name]
    assert packed.is_mkldnn
    assert packed.to_dense().eq(2).all()


def test_what_is_packed() -> None:
    packed = {name for name in new_builder().layout.parameters if new_builder().packs(name)}
    layers = {f"layers.{index}.project_{way}.weight" for index in range(2) for way in ("in", "out")}
    assert packed == layers | {"head.weight"}


def test_placement_of_another_number_of_layers() -> None:
    with pytest.raises(ValueError, match="3 layers are placed, not 2"):
        NetworkBuilder(NetworkConfig(**SHAPE), torch.float32, Placement.on(CPU, 3))


def test_placement_that_parts_what_is_tied() -> None:
    config = NetworkConfig(**SHAPE, tie_word_embeddings=True)
    other = torch.device("cpu", 0)
    with pytest.raises(ValueError, match="shares the embedding's weight"):
        NetworkBuilder(config, torch.float32, Placement(CPU, (CPU, CPU), other))
