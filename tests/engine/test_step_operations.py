"""How much a step asks of a GPU, counted: what is asserted cannot grow unseen.

Kernels are launched in Triton's interpreter, or only recorded where a batch is large.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from gptj_predictor.common import upload
from gptj_predictor.engine import decode_inputs
from gptj_predictor.engine.page_allocator import PageTable
from gptj_predictor.engine.product_timing import choose_products
from gptj_predictor.engine.runner import ModelRunner
from gptj_predictor.engine.sequence import ScheduledChunk, Sequence
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.kv_cache import PagedKVCache
from gptj_predictor.model.product_choice import CallTimer
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.sampling.sampler import Sampler
from tests.support.engines import CPU, GREEDY
from tests.support.gpu_step import cublas_wins, kernels_win, random_network
from tests.support.recording import RecordedCapture, Recording

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="it records the interpreter"),
]

PAGE_SIZE, CONTEXT, LAYERS = 4, 64, 3
CONFIG = NetworkConfig(
    vocab_size=61,
    n_positions=CONTEXT,
    n_embd=32,
    n_layer=LAYERS,
    n_head=2,
    rotary_dim=8,
    eos_token_ids=(0,),
)
DRAWN = replace(GREEDY, temperature=0.8, top_k=5, top_p=0.9)

#: With cuBLAS; and with kernels that do the norm before a product, and what comes after it.
LAYER = ["normalize_and_add", "addmm", "rotate_store_activate", "attend", "addmm_"]
KERNEL_LAYER = ["multiply", "rotate_store_activate", "attend", "multiply"]
HEAD, KERNEL_HEAD = ["native_layer_norm", "addmm", "sample"], ["multiply", "sample"]
STEP = ["index", "embedding", *(LAYER * LAYERS), *HEAD]
KERNEL_STEP = ["index", "embedding", *(KERNEL_LAYER * LAYERS), *KERNEL_HEAD]
#: int8 weights and too many rows for norms in a kernel: it still does what comes after a product.
WIDE_LAYER = ["native_layer_norm", *KERNEL_LAYER]
WIDE_STEP = ["index", "embedding", *(WIDE_LAYER * LAYERS), "native_layer_norm", *KERNEL_HEAD]


class Decoding:
    """A runner and sequences that decode, each of its own length."""

    def __init__(
        self,
        batch: int,
        *,
        graphs: bool = True,
        layers: int = LAYERS,
        quantization: WeightQuantization = "none",
        timer: CallTimer | None = None,
    ) -> None:
        config = replace(CONFIG, n_layer=layers)
        network = random_network(config, torch.bfloat16, quantization)
        choose_products(network, timer, graphs=graphs)
        pages = 1 + batch * (CONTEXT // PAGE_SIZE)
        cache = PagedKVCache(
            devices=[CPU] * layers,
            pages=pages,
            page_size=PAGE_SIZE,
            heads=config.n_head,
            head_size=network.head_size,
            dtype=network.dtype,
        )
        for layer in range(layers):
            for half in cache.layer(layer):
                half.normal_()
        self.execute = batch <= 8
        self.capture = RecordedCapture(execute=self.execute)
        self.runner = ModelRunner(network, cache, Sampler(config.eos_token_ids), batch)
        if graphs:
            self.runner.capture_graphs(self.capture)
        self.tables = [PageTable(PAGE_SIZE, CONTEXT // PAGE_SIZE) for _ in range(batch)]
        for page in range(1, pages):
            self.tables[page % batch].append(page)

    def chunks(self, lengths: list[int], params: Any) -> list[ScheduledChunk]:
        """Each sequence takes in its last token and samples."""
        return [
            ScheduledChunk(
                sequence=Sequence([1 + index % 9] * length, params, number=length),
                batch_index=index,
                page_table=self.tables[index],
                start=length - 1,
                num_tokens=1,
                samples=True,
                epoch=0,
            )
            for index, length in enumerate(lengths)
        ]

    def launch(self, chunks: list[ScheduledChunk]) -> Recording:
        """What a launch does beside the captured step, once the sequences are known."""
        self.runner.launch(chunks)
        with Recording(execute=self.execute) as outside:
            self.runner.launch(chunks)
        return outside


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each upload brings to the device."""
    sizes: list[int] = []
    pin = upload.pinned

    def counted(values: Any, device: torch.device) -> torch.Tensor:
        tensor = pin(values, device)
        sizes.append(tensor.numel())
        return tensor

    monkeypatch.setattr(upload, "pinned", counted)
    monkeypatch.setattr(decode_inputs, "pinned", counted)
    return sizes


@pytest.mark.parametrize("batch", [1, 64, 256])
@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_operations_of_a_step(batch: int, params: Any, uploads: list[int]) -> None:
    decoding = Decoding(batch)
    graph = decoding.capture.graphs[batch]
    assert graph.names == STEP
    # A layer's second product adds to the residual: nothing but these makes memory.
    made = Counter(name for name in graph.silent if name in ("aten::empty", "aten::empty_like"))
    assert sum(made.values()) <= LAYERS
    chunks = decoding.chunks([1 + index % CONTEXT for index in range(batch)], params)
    decoding.runner.launch(chunks)
    uploads.clear()
    outside = decoding.launch(chunks)
    assert len(uploads) == 2, "one per launch"
    # The upload to the static buffer; and what hands the tokens to the host, here a copy.
    assert outside.names == ["copy_", "clone"]
    assert not outside.faults


@pytest.mark.parametrize("batch", [1, 64, 256])
def test_a_layer_more_is_five_launches_more(batch: int) -> None:
    names = [
        decoding.capture.graphs[batch].names
        for decoding in (Decoding(batch, layers=2), Decoding(batch, layers=3))
    ]
    assert Counter(names[1]) - Counter(names[0]) == Counter(LAYER)


@pytest.mark.parametrize(
    ("quantization", "timer", "batch", "step"),
    [
        ("none", kernels_win, 1, KERNEL_STEP),
        ("none", kernels_win, 8, KERNEL_STEP),
        ("none", kernels_win, 64, STEP),
        ("none", cublas_wins, 1, STEP),
        ("none", None, 8, STEP),
        ("int8", kernels_win, 1, KERNEL_STEP),
        ("int8", None, 8, KERNEL_STEP),
        ("int8", None, 16, WIDE_STEP),
        ("int8", kernels_win, 64, WIDE_STEP),
    ],
)
def test_operations_by_the_way_that_is_chosen(
    quantization: WeightQuantization, timer: CallTimer | None, batch: int, step: list[str]
) -> None:
    """A measurement decides where there is one; 16-bit weights are cuBLAS's without."""
    decoding = Decoding(batch, quantization=quantization, timer=timer)
    assert decoding.capture.graphs[batch].names == step
    assert len(step) <= len(STEP)


@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_nothing_depends_on_lengths(params: Any) -> None:
    """The capture compares: shapes, strides, numbers and where the tokens are, at each replay."""
    decoding = Decoding(3, timer=kernels_win)
    for lengths in ([1] * 3, [63, 2, 33], [40, 63]):
        decoding.runner.launch(decoding.chunks(lengths, params))


def test_rows_for_the_general_sampler_leave_the_graph_alone() -> None:
    decoding = Decoding(3)
    chunks = decoding.chunks([9, 9, 9], GREEDY)
    odd = replace(DRAWN, repetition_penalty=1.3, logprobs=2)
    chunks[1] = replace(chunks[1], sequence=Sequence([5] * 9, odd, number=77))
    outside = decoding.launch(chunks)
    assert "sort" in outside.names
    assert not {"local_scalar_dense", "nonzero"} & set(outside.names)


def test_decoding_without_graphs_is_the_same(uploads: list[int]) -> None:
    """As on several GPUs."""
    decoding = Decoding(3, graphs=False)
    outside = decoding.launch(decoding.chunks([3, 9, 30], DRAWN))
    assert outside.names == [*STEP, "clone"]
    assert not outside.faults
