"""Prompts in one launch: against attention chunk by chunk, and what torch's kernels are given."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptj_predictor.model.kv_cache import Extent, LayerCache
from gptj_predictor.model.prefill_plan import MAX_GATHERED_TOKENS, PrefillChunk, plan_prefills
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.model.torch_attention import TorchAttention, attend_prefills
from gptj_predictor.model.varlen_attention import (
    VarlenKernel,
    VarlenPrefill,
    choose_prefill,
    efficient_kernel,
    flash_kernel,
)
from tests.support.varlen import PlainKernel

HEADS, HEAD_SIZE, PAGE_SIZE = 2, 16, 4
META = torch.device("meta")


def make_step(
    shapes: list[tuple[int, int]], *, decodes: int = 0, device: str = "cpu", seed: int = 1
) -> StepInputs:
    """Chunks of (context, new tokens), in pages that lie all over the cache."""
    pages = list(range(1, 1 + sum(-(-(old + new) // PAGE_SIZE) for old, new in shapes) + decodes))
    random.Random(seed).shuffle(pages)
    chunks, slots = [], [pages.pop() * PAGE_SIZE for _ in range(decodes)]
    for old, new in shapes:
        table = [pages.pop() for _ in range(-(-(old + new) // PAGE_SIZE))]
        places = [table[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE for i in range(old + new)]
        context: list[Extent] = []
        for place in places[:old]:
            if context and sum(context[-1]) == place:
                context[-1] = (context[-1][0], context[-1][1] + 1)
            else:
                context.append((place, 1))
        chunks.append(PrefillChunk(new, context))
        slots += places[old:]
    return StepInputs(
        token_ids=torch.zeros(len(slots), dtype=torch.int64, device=device),
        positions=torch.zeros(len(slots), dtype=torch.int64, device=device),
        slot_mapping=torch.tensor(slots, device=device),
        page_tables=torch.zeros(decodes, 1, dtype=torch.int32, device=device),
        context_lengths=torch.ones(decodes, dtype=torch.int32, device=device),
        contexts=[[(slot, 1)] for slot in slots[:decodes]],
        chunks=chunks,
    )


def make_tensors(step: StepInputs, dtype: torch.dtype) -> tuple[torch.Tensor, LayerCache]:
    """Queries, keys and values as columns of a wider matrix, and the cache with them in it."""
    generator = torch.Generator().manual_seed(7)
    tokens = len(step.token_ids)
    projected = torch.randn(tokens, 4 * HEADS * HEAD_SIZE, generator=generator).to(dtype)
    qkv = projected[:, : 3 * HEADS * HEAD_SIZE].unflatten(1, (3, HEADS, HEAD_SIZE))
    shape = (2, 200, PAGE_SIZE, HEADS, HEAD_SIZE)
    cache = LayerCache(torch.randn(shape, generator=generator).to(dtype))
    cache.keys.flatten(0, 1)[step.slot_mapping] = qkv[:, 1]
    cache.values.flatten(0, 1)[step.slot_mapping] = qkv[:, 2]
    return qkv, cache


@pytest.mark.parametrize(
    "shapes",
    [
        [(0, 5)],
        [(0, 5), (0, 2), (0, 17)],
        [(9, 5)],
        [(0, 3), (9, 5), (32, 2), (1, 8)],
        [(8, 4), (0, 4), (64, 64)],
    ],
    ids=str,
)
@pytest.mark.parametrize("decodes", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_as_chunk_by_chunk(shapes: list[tuple[int, int]], decodes: int, dtype: torch.dtype) -> None:
    """The same output, with the values' own memory for it; decoding rows are left alone."""
    step = make_step(shapes, decodes=decodes)
    qkv, cache = make_tensors(step, torch.float64)
    expected = torch.zeros(len(qkv), HEADS, HEAD_SIZE, dtype=torch.float64)
    attend_prefills(qkv, cache, step, expected)
    qkv, cache = make_tensors(step, dtype)
    before, kernel = qkv.clone(), PlainKernel()
    VarlenPrefill(kernel, "plain")(qkv, cache, step, qkv[:, 2])
    torch.testing.assert_close(qkv[decodes:, 2].double(), expected[decodes:], atol=1e-5, rtol=1e-5)
    assert torch.equal(qkv[:, :2], before[:, :2])
    assert torch.equal(qkv[:decodes], before[:decodes])
    old = sum(context for context, _ in shapes)
    new = sum(count for _, count in shapes)
    assert kernel.calls == [(new, old + new)]


def test_keys_are_read_where_they_are_if_there_is_no_context() -> None:
    step = make_step([(0, 5), (0, 6)])
    qkv, cache = make_tensors(step, torch.float32)
    seen: list[torch.Tensor] = []

    def kernel(query: torch.Tensor, *others: torch.Tensor | int) -> torch.Tensor:
        seen.extend(x for x in (query, *others[:2]) if isinstance(x, torch.Tensor))
        return torch.zeros_like(query)

    VarlenPrefill(kernel, "spy")(qkv, cache, step, torch.empty_like(qkv[:, 0]))
    assert [x.data_ptr() for x in seen] == [qkv[:, i].data_ptr() for i in range(3)]


@pytest.mark.parametrize("most", [1, 20, 40, 10**6])
def test_what_is_gathered_at_once_is_bounded(most: int) -> None:
    """A few launches more, and the same output."""
    shapes = [(0, 3), (9, 5), (32, 2), (1, 8), (0, 10), (12, 20)]
    step = make_step(shapes, decodes=1)
    qkv, cache = make_tensors(step, torch.float64)
    whole, kernel = torch.zeros_like(qkv[:, 0]), PlainKernel()
    VarlenPrefill(kernel, "plain")(qkv, cache, step, whole)
    assert len(kernel.calls) == 1
    parts = plan_prefills(step.chunks, step.slot_mapping[1:], most)
    assert sum(part.num_tokens for part in parts) == sum(new for _, new in shapes)
    assert all(
        part.slots is not None and (len(part.slots) <= most or len(part.cum_seq_q) == 2)
        for part in parts
    )
    # None could have taken the first chunk of the next one, too.
    sizes = [old + new for old, new in shapes]
    for part in parts[:-1]:
        taken, sizes = sizes[: len(part.cum_seq_q) - 1], sizes[len(part.cum_seq_q) - 1 :]
        assert sum(taken) + sizes[0] > most
    vars(step)["prefill_launches"] = parts
    out, kernel = torch.zeros_like(qkv[:, 0]), PlainKernel()
    VarlenPrefill(kernel, "plain")(qkv, cache, step, out)
    assert len(kernel.calls) == len(parts)
    torch.testing.assert_close(out, whole)


def test_all_layers_share_one_plan_and_a_copied_step_makes_its_own() -> None:
    step = make_step([(4, 5)])
    assert step.prefill_launches is step.prefill_launches
    copied = step.to(torch.device("cpu", 0))
    assert copied.prefill_launches is not step.prefill_launches
    assert replace(step, chunks=[], slot_mapping=step.slot_mapping[:0]).prefill_launches == []


class Operations(TorchDispatchMode):
    """The names of all operations that compute or move something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func._schema.name != "aten::_unsafe_view":
            self.names.append(func._schema.name.removeprefix("aten::").strip("_"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        (flash_kernel, torch.bfloat16),
        (flash_kernel, torch.float16),
        (efficient_kernel, torch.float16),
        (efficient_kernel, torch.float32),
    ],
)
@pytest.mark.parametrize("context", [0, 1900])
def test_torch_takes_the_arguments(kernel: VarlenKernel, dtype: torch.dtype, context: int) -> None:
    """GPT-J-6B's sizes on a device without memory: 256 prompts of 128 tokens, with decodes."""
    heads, head_size, prompts, decodes = 16, 256, 256, 3
    chunks = [PrefillChunk(128, [(16, context)] if context else [])] * prompts
    tokens = decodes + 128 * prompts
    # The plan is made where its numbers are, as every device needs them.
    launches = plan_prefills(chunks, torch.arange(128 * prompts))
    assert len(launches) == (1 if not context else 256 // (MAX_GATHERED_TOKENS // 2028))
    step = StepInputs(
        token_ids=torch.empty(tokens, dtype=torch.int64, device=META),
        positions=torch.empty(tokens, dtype=torch.int64, device=META),
        slot_mapping=torch.empty(tokens, dtype=torch.int64, device=META),
        page_tables=torch.empty(decodes, 128, dtype=torch.int32, device=META),
        context_lengths=torch.empty(decodes, dtype=torch.int32, device=META),
        contexts=[],
        chunks=chunks,
    )
    vars(step)["prefill_launches"] = [
        replace(
            launch,
            cum_seq_q=launch.cum_seq_q.to(META),
            cum_seq_k=launch.cum_seq_k.to(META),
            slots=None if launch.slots is None else launch.slots.to(META),
        )
        for launch in launches
    ]
    projected = torch.empty(tokens, 3 * 4096 + 16384, dtype=dtype, device=META)
    qkv = projected[:, : 3 * 4096].unflatten(1, (3, heads, head_size))
    both = torch.empty(2, 512, 16, heads, head_size, dtype=dtype, device=META)
    outputs: list[torch.Tensor] = []

    def spy(*arguments: Any) -> torch.Tensor:
        outputs.append(kernel(*arguments))
        return outputs[-1]

    with Operations() as operations:
        VarlenPrefill(spy, "torch's own")(qkv, LayerCache(both), step, qkv[:, 2])
    # One launch, and one copy to where the second product reads it; keys and values are gathered
    # behind a context. Whatever the number of prompts.
    once = [kernel.__name__.replace("kernel", "attention_forward"), "copy"]
    gathered = ["index_select"] * 2 if context else []
    assert operations.names == [*gathered, *once] * len(launches)
    assert sum(len(out) for out in outputs) == 128 * prompts
    assert all(out.shape[1:] == (heads, head_size) and out.dtype is dtype for out in outputs)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_size", "has_flash", "name"),
    [
        ((9, 0), torch.bfloat16, 256, True, "variable-length flash prefill"),
        ((8, 0), torch.float16, 256, True, "variable-length flash prefill"),
        ((12, 0), torch.bfloat16, 64, True, "variable-length flash prefill"),
        ((9, 0), torch.bfloat16, 256, False, "variable-length memory-efficient prefill"),
        ((9, 0), torch.float32, 256, True, "variable-length memory-efficient prefill"),
        ((9, 0), torch.bfloat16, 320, True, "variable-length memory-efficient prefill"),
        ((7, 5), torch.float16, 256, True, "variable-length memory-efficient prefill"),
        ((7, 0), torch.float16, 256, True, "variable-length memory-efficient prefill"),
        ((9, 0), torch.bfloat16, 20, True, None),
    ],
)
def test_which_kernel(
    capability: tuple[int, int],
    dtype: torch.dtype,
    head_size: int,
    has_flash: bool,
    name: str | None,
) -> None:
    chosen = choose_prefill(capability, dtype, head_size, has_flash=has_flash)
    assert (chosen and chosen.name) == name


def test_the_name_is_in_the_attention_s() -> None:
    prefill = choose_prefill((9, 0), torch.bfloat16, 256, has_flash=True)
    assert TorchAttention(prefill).name.endswith("variable-length flash prefill")
