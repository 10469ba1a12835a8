"""Where attention writes, and that its two implementations agree."""

from __future__ import annotations

import pytest
import torch

from gptj_predictor.model.attention import Attention, rotary_table
from gptj_predictor.model.kv_cache import PagedKVCache
from gptj_predictor.model.prefill_plan import PrefillChunk
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.model.torch_attention import TorchAttention
from gptj_predictor.model.triton_attention import TritonAttention
from tests.support.engines import CPU

HEADS, HEAD_SIZE, PAGE_SIZE, ROTARY = 2, 16, 4, 8

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


def attend(attention: Attention, *, in_place: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and queries, keys and values as they are afterwards."""
    generator = torch.Generator().manual_seed(3)
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
    qkv = torch.randn(7, 3, HEADS, HEAD_SIZE, generator=generator)
    attention.store(qkv, rotary_table(8, ROTARY, CPU)[STEP.positions], cache, STEP)
    stored = qkv.clone()
    out = qkv[:, 2] if in_place else torch.full((7, HEADS, HEAD_SIZE), torch.nan)
    attention.attend(qkv, cache, STEP, out=out)
    if in_place:
        stored[:, 2] = out
    assert torch.equal(qkv, stored), "wrote to more than its output"
    return out, qkv


@pytest.mark.parametrize("attention", [TorchAttention(), TritonAttention(processors=4)])
def test_the_output_may_take_the_place_of_the_values(attention: Attention) -> None:
    apart, _ = attend(attention, in_place=False)
    instead, _ = attend(attention, in_place=True)
    assert apart.isfinite().all()
    assert torch.equal(apart, instead)


def test_both_implementations_agree() -> None:
    one, stored = attend(TorchAttention(), in_place=False)
    other, same = attend(TritonAttention(processors=4), in_place=False)
    torch.testing.assert_close(stored, same)
    torch.testing.assert_close(one, other)
