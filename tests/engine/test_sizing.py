"""How the KV cache gets what is left: real steps on small networks, memory of made-up GPUs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gptj_predictor.devices.memory import activation_bytes, gpu_cache_bytes, kv_cache_pages
from gptj_predictor.engine import decode_step
from gptj_predictor.engine.core import EngineConfig, EngineCore
from gptj_predictor.engine.graphs import ladder
from gptj_predictor.engine.page_allocator import PageTable
from gptj_predictor.engine.rehearsal import largest_step, prompt_step
from gptj_predictor.engine.request import FinishReason
from gptj_predictor.engine.sequence import ScheduledChunk, Sequence
from gptj_predictor.engine.sizing import MemoryReading, bytes_taken, measure_step
from gptj_predictor.launch import step_bytes
from gptj_predictor.model.config import NetworkConfig
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.prefill_plan import MAX_GATHERED_TOKENS
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.model.triton_attention import TritonAttention
from gptj_predictor.snapshot.builder import NetworkBuilder
from gptj_predictor.snapshot.layout import NetworkLayout
from tests.support.engines import CPU, GREEDY, FaultyNetwork, RunningEngine
from tests.support.gpu_memory import GPU, MIB, FakeGpu, Load

#: As many heads and positions as GPT-J-6B, and little behind them.
TINY: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4, "vocab_size": 50}
PAGE_SIZE = 16


def random_network(*, has_kernels: bool = False, **more: Any) -> GPTJNetwork:
    config = NetworkConfig(**(TINY | more))
    builder = NetworkBuilder(config, torch.float32, Placement.on(CPU, config.n_layer))
    generator = torch.Generator().manual_seed(1)
    for name in builder.layout.parameters:
        builder.put(name, builder.allocate(name).normal_(std=0.1, generator=generator))
    return builder.finish({CPU: TritonAttention(processors=4)} if has_kernels else None)


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are all 0: the kernel would be interpreted, for thousands of rows."""
    monkeypatch.setattr(decode_step, "sample_rows", lambda logits, *, out, **_: out.zero_())


class Shortcut(FaultyNetwork):
    """A network that goes from its inputs to the last layer at once: its memory is made up."""

    def hidden_states(self, step: StepInputs, *inputs: Any) -> torch.Tensor:
        assert self.inject is not None
        self.inject(step)
        return torch.zeros(len(step.token_ids), TINY["n_embd"])


def engine_config(batch: int, prefill: int, pages: int = 1, **more: Any) -> EngineConfig:
    return EngineConfig(
        max_batch_size=batch,
        max_prefill_tokens=prefill,
        page_size=PAGE_SIZE,
        num_pages=pages,
        **more,
    )


@pytest.mark.parametrize("batch", [1, 2, 40, 256])
@pytest.mark.parametrize("prefill", [1, 20, 256, 2048, 8192])
@pytest.mark.parametrize("context", [64, 2048])
def test_the_largest_step(batch: int, prefill: int, context: int) -> None:
    """All places of the batch, the whole budget if so many places can use it, long contexts."""
    chunks = largest_step(
        max_batch_size=batch, max_prefill_tokens=prefill, page_size=16, max_context=context
    )
    assert [c.num_tokens > 1 for c in chunks] == sorted(c.num_tokens > 1 for c in chunks)
    indices = [chunk.batch_index for chunk in chunks]
    assert len(set(indices)) == len(indices)
    assert set(indices) <= set(range(batch))
    assert all(chunk.samples and chunk.end == context - 1 for chunk in chunks)
    prompts = [chunk for chunk in chunks if chunk.num_tokens > 1]
    total = sum(chunk.num_tokens for chunk in prompts)
    assert total <= prefill
    if prefill > 1:
        assert total == min(prefill, len(prompts) * (context - 1))
        assert len(chunks) == batch
    assert all(not chunk.page_table.array.any() for chunk in chunks)  # the null page


def peak_bytes(run: Callable[[], object]) -> int:
    """The most memory that was in use at once beside what was before, of torch's on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    result = profiler.profiler
    assert result is not None
    assert result.kineto_results is not None
    events = [e for e in result.kineto_results.events() if e.name() == "[memory]"]
    used = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        used += event.nbytes()
        peak = max(peak, used)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "vocabulary", "hidden"), [(160, 3000, 32), (8, 3000, 32), (96, 200, 128)]
)
def test_no_step_takes_more_than_is_computed(batch: int, vocabulary: int, hidden: int) -> None:
    """The largest one comes close to it, and none of some others takes more than the largest."""
    network = random_network(vocab_size=vocabulary, n_embd=hidden, n_positions=256)
    core = EngineCore(network, engine_config(batch, 256))
    runner, size = core._runner, {"page_size": PAGE_SIZE, "max_context": 256}
    largest = largest_step(max_batch_size=batch, max_prefill_tokens=256, **size)
    steps: dict[str, list[ScheduledChunk]] = {
        "one prompt": prompt_step(255, **size),
        "decodes": largest_step(max_batch_size=batch, max_prefill_tokens=1, **size),
        "prompts alone": [chunk for chunk in largest if chunk.num_tokens > 1],
        "largest": largest,
    }
    runner.launch(steps["decodes"]).wait()  # what is made once
    peaks = {
        name: peak_bytes(lambda step=step: runner.launch(step).wait())  # type: ignore[misc]
        for name, step in steps.items()
    }
    computed = activation_bytes(
        tokens=256 + batch,
        logit_rows=batch,
        hidden=hidden,
        inner=4 * hidden,
        vocabulary=vocabulary,
        value_bytes=4,
    )
    # Attention on a CPU copies a context in many pieces together; that is not counted.
    copied = 2 * 256 * hidden * 4 * 2
    assert max(peaks.values()) == peaks["largest"], peaks
    assert 0.3 * computed < peaks["largest"] < computed + copied, (peaks, computed)


def test_what_was_taken() -> None:
    """Peaks count in full; of what lies outside each graph, and not what stays loaded."""
    peak = MemoryReading(total=1000, free=400, reserved=450, peak_reserved=500)
    left = MemoryReading(total=1000, free=790, reserved=100, peak_reserved=100)
    assert (peak.outside, left.outside) == (150, 110)
    assert bytes_taken(peak, left, graphs=0) == 400 + 40
    assert bytes_taken(peak, left, graphs=5) == 400 + 5 * 40
    assert bytes_taken(left, left, graphs=5) == 0


#: Free bytes of cards with a context on them, in GiB of memory as in ``tools/docs_tables.py``.
CARDS = {"T4": 14.7, "V100": 15.8, "24 GB": 23.5, "40 GB": 39.4, "80 GB": 79.1, "141 GB": 139.8}
GPTJ_6B = NetworkConfig()
CONTEXT = 450 * MIB
KERNELS = 150 * MIB
#: Logits of 256 rows in 16 bits, which graphs write to.
KEPT = 256 * 50400 * 2


def test_logits_that_stay_are_counted() -> None:
    """On a GPU beside those of a step, and beside a gathered context."""
    sizes = {"tokens": 2048, "logit_rows": 256}
    on_cpu, on_gpu = (
        step_bytes(GPTJ_6B, torch.float16, **sizes, on_gpu=on_gpu) for on_gpu in (False, True)
    )
    assert on_gpu - on_cpu == KEPT + MAX_GATHERED_TOKENS * 2 * 4096 * 2


@pytest.fixture
def count_kept(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeGpu], None]:
    """Have a GPU count the logits of decode steps for as long as these exist."""

    def count(gpu: FakeGpu) -> None:
        class Counted(decode_step.DecodeStep):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments)
                size = len(self.logits) * GPTJ_6B.vocab_size * 2
                gpu.allocate(size)
                weakref.finalize(self, gpu.give_back, size)

        monkeypatch.setattr(decode_step, "DecodeStep", Counted)

    return count


@pytest.mark.slow
@pytest.mark.usefixtures("no_sampling")
@pytest.mark.parametrize("card", CARDS)
def test_gpt_j_6b_fits(card: str, count_kept: Callable[[FakeGpu], None]) -> None:
    """Weights, measuring, cache, captures and the largest steps one after the other.

    The engine is real, its network is not; the bytes are those of GPT-J-6B in 16 bits.
    """
    gpu = FakeGpu(int(CARDS[card] * 2**30), CONTEXT)
    gpu.allocate(sum(NetworkLayout(GPTJ_6B).part_bytes(torch.float16)))
    count_kept(gpu)

    def takes(tokens: int, rows: int, gathered: int) -> int:
        assert gathered <= MAX_GATHERED_TOKENS
        size = step_bytes(GPTJ_6B, torch.float16, tokens=tokens, logit_rows=rows)
        return size + gathered * 2 * GPTJ_6B.n_embd * 2

    load = Load(gpu, step_bytes=takes, graph_bytes=2 * MIB, kernel_bytes=KERNELS)
    network = Shortcut(random_network(has_kernels=True))
    network.inject = load.inject
    core_of = cast("GPTJNetwork", network)
    sizes = engine_config(256, 2048)
    taken = measure_step(core_of, sizes, load.capture, gpu)[GPU]
    # The largest step, the logits that stay, the largest graph's pool, and every rung's own.
    largest = takes(2048 + 224, 256, MAX_GATHERED_TOKENS)
    others = KEPT + takes(256, 256, 0) + 2 * MIB * len(ladder(256))
    assert 0.95 * largest < taken - others <= largest
    assert gpu.outside == CONTEXT + KERNELS
    assert gpu.allocated == gpu.reserved

    token_bytes = 2 * GPTJ_6B.n_embd * 2
    layers = [GPU] * GPTJ_6B.n_layer
    pages = kv_cache_pages(
        {GPU: gpu_cache_bytes(gpu.free, taken, 0.9)},
        layers,
        page_size=PAGE_SIZE,
        token_bytes=token_bytes,
        max_pages=256 * 128,
    )
    gpu.allocate((pages + 1) * PAGE_SIZE * token_bytes * len(layers))
    core = EngineCore(core_of, engine_config(256, 2048), load.capture)
    for _ in range(2):
        core.rehearse()
    assert gpu.lowest >= 0
    # What the docs promise for the card, or more.
    tokens = pages * PAGE_SIZE
    left = int(CARDS[card] * 2**30) - 2**30 - 12.2e9
    step = step_bytes(GPTJ_6B, torch.float16, tokens=2048, logit_rows=256, on_gpu=True)
    promised = (left - step) * 0.9
    assert tokens > 2048
    assert tokens == pytest.approx(promised / (token_bytes * 28), rel=0.25), (tokens, card)


def test_a_card_that_is_too_small() -> None:
    gpu = FakeGpu(500 * MIB, 100 * MIB)
    load = Load(gpu, step_bytes=lambda *_: 450 * MIB, graph_bytes=0, kernel_bytes=0)
    network = FaultyNetwork(random_network())
    network.inject = load.inject
    with pytest.raises(torch.OutOfMemoryError):
        measure_step(cast("GPTJNetwork", network), engine_config(4, 64), None, gpu)


@pytest.mark.usefixtures("no_sampling")
def test_only_the_largest_graph_is_captured_to_measure() -> None:
    sizes: list[int] = []
    network = Shortcut(random_network(has_kernels=True))
    network.inject = lambda step: sizes.append(step.num_decodes)
    captured: list[int] = []

    def capture(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        run()
        captured.append(sizes[-1])
        return run

    gpu = FakeGpu(1000 * MIB, 0)
    config = engine_config(40, 64)
    measure_step(cast("GPTJNetwork", network), config, capture, gpu)
    assert captured == [40]
    EngineCore(cast("GPTJNetwork", network), config, capture).prepare()
    assert captured[1:] == ladder(40)[::-1]


def test_warmed_up_before_it_is_started() -> None:
    """A usual prompt and the largest chunk; afterwards texts are the same."""
    seen: list[list[int]] = []
    network = FaultyNetwork(random_network())
    network.inject = lambda step: seen.append([chunk.tokens for chunk in step.chunks])
    shape: dict[str, Any] = {"max_prefill_tokens": 512, "page_size": PAGE_SIZE}
    with RunningEngine(cast("GPTJNetwork", network), **shape, warm_up=True) as engine:
        assert seen == [[128], [512]]
        warm = engine.submit(list(range(20)), GREEDY).result()
        assert engine.pages_in_use == 0
        engine.engine.check_invariants()
    seen.clear()
    with RunningEngine(random_network(), **shape) as engine:
        assert engine.submit(list(range(20)), GREEDY).result() == warm
    assert warm[1] is FinishReason.LENGTH


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_warm_up_that_fails_is_told_to_who_starts() -> None:
    network = FaultyNetwork(random_network())
    network.fault = torch.AcceleratorError("CUDA error: no kernel image is available")
    engine = RunningEngine(cast("GPTJNetwork", network), warm_up=True, page_size=PAGE_SIZE)
    with pytest.raises(RuntimeError, match=r"died while it warmed up: .*no kernel image"):
        engine.engine.start()
    engine.engine.stop()  # waits for the thread
    assert not engine.engine.alive


def test_a_rehearsal_leaves_no_tokens_behind() -> None:
    """Whoever gets a place that a rehearsed sequence had has its own tokens there."""
    texts = []
    for rehearses in (True, False):
        core = EngineCore(random_network(), engine_config(4, 64, pages=40))
        if rehearses:
            core.rehearse()
        sequences = [Sequence(list(range(n, n + 8)), GREEDY) for n in range(4)]
        for sequence in sequences:
            core.add(sequence)
        while core.has_work:
            core.step()
        texts.append([sequence.token_ids for sequence in sequences])
    assert texts[0] == texts[1]
    assert all(len(text) == GREEDY.max_length for text in texts[0])


def test_pages_of_a_table_may_repeat() -> None:
    table = PageTable(4, 8)
    for _ in range(3):
        table.append(0)
    assert table.extents(10) == [(0, 4), (0, 4), (0, 2)]
