"""Where attention writes, and that two ways through a layer agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from gptj_predictor.model.attention import Attention, rotary_table
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.kv_cache import LayerCache, PagedKVCache
from gptj_predictor.model.layer import GPTJLayer, gelu_tanh
from gptj_predictor.model.prefill_plan import PrefillChunk
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.model.torch_attention import TorchAttention
from gptj_predictor.model.triton_attention import TritonAttention
from tests.support.engines import CPU

HEADS, HEAD_SIZE, PAGE_SIZE, ROTARY, INNER = 2, 16, 4, 8, 50
HIDDEN = HEADS * HEAD_SIZE

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the kernels would be compiled for tensors of the CPU"
)

#: Two sequences that decode, in pages that lie apart, and two chunks of prompts.
STEP = StepInputs(
    token_ids=torch.zeros(7, dtype=torch.int64),
    positions=torch.tensor([5, 0, 2, 3, 4, 0, 1]),
    slot_mapping=torch.tensor([9, 12, 22, 23, 24, 28, 29]),
    page_tables=torch.tensor([[4, 2], [3, 0]], dtype=torch.int32),
    context_lengths=torch.tensor([6, 1], dtype=torch.int32),
    contexts=[[(16, 4), (8, 2)], [(12, 1)]],
    chunks=[PrefillChunk(3, [(20, 2)]), PrefillChunk(2, [])],
)

BOTH = pytest.mark.parametrize("attention", [TorchAttention(), TritonAttention(processors=4)])


def filled_cache(generator: torch.Generator) -> LayerCache:
    cache = PagedKVCache(
        devices=[CPU],
        pages=8,
        page_size=PAGE_SIZE,
        heads=HEADS,
        head_size=HEAD_SIZE,
        dtype=torch.float32,
    ).layer(0)
    for half in cache:
        half.normal_(generator=generator)
    return cache


@BOTH
def test_the_output_may_take_the_place_of_the_values(attention: Any) -> None:
    outputs = []
    for in_place in (False, True):
        generator = torch.Generator().manual_seed(3)
        cache = filled_cache(generator)
        qkv = torch.randn(7, 3, HEADS, HEAD_SIZE, generator=generator)
        for half, new in zip(cache, qkv[:, 1:].unbind(1), strict=True):
            half.flatten(0, 1)[STEP.slot_mapping] = new
        stored = qkv.clone()
        out = qkv[:, 2] if in_place else torch.full((7, HEADS, HEAD_SIZE), torch.nan)
        attention.attend(qkv, cache, STEP, out=out)
        if in_place:
            stored[:, 2] = out
        assert torch.equal(qkv, stored), "wrote to more than its output"
        outputs.append(out)
    assert outputs[0].isfinite().all()
    assert torch.equal(*outputs)


def run_layer(attention: Attention, activation: str) -> tuple[torch.Tensor, ...]:
    """A layer's output and its cache."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "norm.weight": (HIDDEN,),
        "norm.bias": (HIDDEN,),
        "project_in.weight": (3 * HIDDEN + INNER, HIDDEN),
        "project_in.bias": (3 * HIDDEN + INNER,),
        "project_out.weight": (HIDDEN, HIDDEN + INNER),
        "project_out.bias": (HIDDEN,),
    }
    weights = {
        f"layers.0.{name}": torch.randn(shape, generator=generator) / 3
        for name, shape in shapes.items()
    }
    config = NetworkConfig(n_embd=HIDDEN, n_head=HEADS, activation_function=activation)
    layer = GPTJLayer.of(config, weights, "layers.0")
    cache = filled_cache(generator)
    rotations = attention.rotations(rotary_table(8, ROTARY, CPU), STEP.positions)
    residual = torch.randn(7, HIDDEN, generator=generator)
    return attention.layer(layer, residual, rotations, cache, STEP), *cache


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_both_implementations_agree(activation: str) -> None:
    one = run_layer(TorchAttention(), activation)
    other = run_layer(TritonAttention(processors=4), activation)
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gelu_is_the_tanh_approximation(dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-12, 12, 5001), torch.tensor([-3e4, 3e4, 0])]).to(dtype)
    wanted = functional.gelu(x.double(), approximate="tanh")
    result = gelu_tanh(x)
    assert result is x
    torch.testing.assert_close(x, wanted.to(dtype), rtol=4 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("head_size", [16, 12])
def test_the_cache_takes_new_tokens(head_size: int) -> None:
    """Whatever the size of a token, by other places' values untouched."""
    cache = LayerCache(torch.randn(2, 6, 4, 1, head_size).bfloat16())
    tokens = torch.randn(3, 3, 1, head_size).bfloat16()
    wanted = cache.both.clone()
    wanted.flatten(1, 2)[:, [9, 2, 17]] = tokens[:, 1:].transpose(0, 1)
    cache.write(torch.tensor([9, 2, 17]), tokens[:, 1:])
    assert cache.both.equal(wanted)
