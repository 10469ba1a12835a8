"""Whole texts through a GPU's step, whoever computes its products, in Triton's interpreter."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from gptj_predictor.engine.core import EngineCore
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.model.linear import FloatProjection
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.product_choice import CallTimer
from gptj_predictor.model.projections import make_projection
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.model.triton_linear import projection
from gptj_predictor.model.triton_linear.cuts import Card
from gptj_predictor.model.triton_linear.projection import TritonProjection, Workspace
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.snapshot.layout import NetworkLayout, scale_of
from tests.support.engines import CPU, GREEDY, load, make_config
from tests.support.gpu_step import cublas_wins, kernels_win, with_kernels
from tests.support.recording import RecordedCapture
from tests.support.reference import ReferenceModel
from tests.support.triton_interpreter import correct_bfloat16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="its tensors are on the CPU"),
]

#: Prompts of fewer and of more tokens than a kernel norms.
PROMPTS = ([7, 3, 21], [5, 60, 2, 9, 31, 44, 18, 27, 33, 12, 6])
NEW_TOKENS = 5


@pytest.fixture(autouse=True)
def _corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    correct_bfloat16(monkeypatch)


def exact_model(reference: ReferenceModel, network: GPTJNetwork) -> ReferenceModel:
    """transformers' model in fp32 of the values that the network has."""
    weights = dict(network.weights)
    for name in list(weights):
        if scale_of(name) in weights:
            weights[name] = weights[name].float() * weights[scale_of(name)][:, None]
    tensors = {
        name: place.of(weights[place.parameter]).float()
        for name, place in NetworkLayout(network.config).places.items()
    }
    model: Any = type(reference.model)(reference.model.config).eval()
    model.load_state_dict(tensors, strict=False)
    return replace(reference, model=model)


def generate(core: EngineCore, requests: list[tuple[list[int], SamplingParams]]) -> list[list[int]]:
    sequences = [Sequence(list(prompt), params) for prompt, params in requests]
    for sequence in sequences:
        core.add(sequence)
    while core.has_work:
        core.step()
    return [
        sequence.token_ids[len(prompt) :]
        for sequence, (prompt, _) in zip(sequences, requests, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("quantization", "timer"),
    [
        ("none", kernels_win),
        ("none", cublas_wins),
        ("int8", kernels_win),
        # In the interpreter it takes long to dequantize.
        pytest.param("int8", cublas_wins, marks=pytest.mark.large),
    ],
)
def test_greedy_is_the_reference_s(
    small: ReferenceModel,
    quantization: WeightQuantization,
    dtype: torch.dtype,
    timer: CallTimer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And every captured step has taken the way that the clock preferred."""
    network = with_kernels(load(small.folder, dtype), quantization)
    config = make_config(network, max_batch_size=len(PROMPTS), page_size=16)
    capture = RecordedCapture()
    with caplog.at_level(logging.INFO, "gptj_predictor"):
        core = EngineCore(network, config, capture, timer)
    core.prepare()
    requests = [
        (prompt, replace(GREEDY, max_length=len(prompt) + NEW_TOKENS)) for prompt in PROMPTS
    ]
    exact = exact_model(small, network)
    assert generate(core, requests) == [exact.greedy(*request) for request in requests]
    wanted = timer is kernels_win
    assert sorted(capture.graphs) == [1, 2]
    for graph in capture.graphs.values():
        assert ("multiply" in graph.names) is wanted
    [line] = [one.getMessage() for one in caplog.records if "products, chosen" in one.getMessage()]
    assert f"cpu project_in: {'kernel' if wanted else 'cuBLAS'} for 1/2/4/8" in line
    choices = core.info().products
    assert {one.product for one in choices} == {"project_in", "project_out", "head"}
    assert all((one.way == "cuBLAS") is not wanted for one in choices if one.rows <= 8)


def test_the_weight_is_not_copied(small: ReferenceModel) -> None:
    """A product that may be a kernel's reads the memory that was loaded."""
    network = with_kernels(load(small.folder, torch.float16))
    for index, layer in enumerate(network._layers):
        own: Any = layer.project_in
        weight = network.weights[f"layers.{index}.project_in.weight"]
        assert own.weight.data_ptr() == weight.data_ptr()


def test_a_second_engine_measures_nothing(small: ReferenceModel) -> None:
    network = with_kernels(load(small.folder, torch.float16))
    config = make_config(network, max_batch_size=1, page_size=16)
    first = EngineCore(network, config, timer=kernels_win).info().products

    def measure(_: Any) -> float:
        raise AssertionError

    assert EngineCore(network, config, timer=measure).info().products == first
    assert first


def test_on_a_cpu_nothing_is_measured(small: ReferenceModel) -> None:
    network = load(small.folder)
    assert EngineCore(network, make_config(network, max_batch_size=1)).info().products == ()
    assert network.product_choices is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_weights_that_are_loaded_to_a_gpu(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 16 bits can be a kernel's; fp32 is cuBLAS's."""
    card = Card("an Ampere", 80, 4)
    monkeypatch.setattr(projection, "workspace", lambda device: Workspace(card, CPU))
    with FakeTensorMode():
        weight, bias = (torch.empty(size, dtype=dtype, device="cuda") for size in ((8, 16), (8,)))
        made = make_projection(weight, bias, None)
    assert isinstance(made, FloatProjection if dtype is torch.float32 else TritonProjection)
    assert any(value is weight for value in vars(made).values())
