"""What goes wrong in a step, and what becomes of the sequences: one network, told to fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch

from gptj_predictor.engine.core import EngineCore
from gptj_predictor.engine.faults import DeviceFaultError, Fault, classify
from gptj_predictor.engine.request import Event, Failure, FinishReason
from gptj_predictor.engine.sequence import Sequence, SequenceStatus
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.step_inputs import StepInputs
from tests.support.engines import GREEDY, FaultyNetwork, RunningEngine, load, make_config
from tests.support.reference import ReferenceModel
from tests.support.servers import wait_for

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
]


class Steps:
    """An engine core on a network that may fail; each step is checked."""

    def __init__(self, reference: ReferenceModel, *, overlap: bool = False) -> None:
        self.network = FaultyNetwork(load(reference.folder))
        network = cast("GPTJNetwork", self.network)
        self.core = EngineCore(network, make_config(network, overlap=overlap))
        self.reference = reference
        self.tokens: dict[Sequence, list[int]] = {}
        self.ends: dict[Sequence, Event] = {}

    def add(self, *prompt: int, length: int = 24) -> Sequence:
        sequence = Sequence(list(prompt), replace(GREEDY, max_length=length))
        self.tokens[sequence] = []
        self.core.add(sequence)
        return sequence

    def step(self) -> None:
        for sequence, event in self.core.step():
            assert sequence not in self.ends
            if event.token_id is not None:
                self.tokens[sequence].append(event.token_id)
            if event.finish_reason is not None:
                self.ends[sequence] = event
        self.core.check_invariants()

    def run(self) -> None:
        for _ in range(500):
            if not self.core.has_work:
                break
            self.step()
        assert not self.core.has_work
        assert self.core.stats().used_pages == 0

    def check_exact(self, sequence: Sequence, prompt: list[int]) -> None:
        assert self.ends[sequence].finish_reason is not FinishReason.ERROR
        assert self.tokens[sequence] == self.reference.greedy(prompt, sequence.params)

    def failure(self, sequence: Sequence) -> Failure | None:
        return self.ends[sequence].failure


def more_prompt_tokens_than(limit: int, error: Exception) -> Callable[[StepInputs], None]:
    """A device whose memory suffices for so many prompt tokens a step."""

    def inject(step: StepInputs) -> None:
        if sum(chunk.tokens for chunk in step.chunks) > limit:
            raise error

    return inject


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_in_a_prefill(small: ReferenceModel, error: Exception) -> None:
    """Prompts are tried alone: those that fit end as ever, the others with an error of their own.

    Those that decode go on.
    """
    steps = Steps(small)
    decoding = steps.add(5)
    steps.step()
    steps.network.inject = more_prompt_tokens_than(8, error)
    first, large, last = (
        steps.add(1, 2, 3, 4, 5),
        steps.add(*range(20, 32)),
        steps.add(9, 8, 7, 6, 5),
    )
    steps.step()
    assert steps.core.stats().num_preemptions == 3
    steps.run()
    steps.check_exact(decoding, [5])
    steps.check_exact(first, [1, 2, 3, 4, 5])
    steps.check_exact(last, [9, 8, 7, 6, 5])
    assert steps.failure(large) is Failure.OUT_OF_MEMORY
    assert steps.core.stats().failures[Failure.OUT_OF_MEMORY] == 1
    steps.network.inject = None
    again = steps.add(*range(20, 32))
    steps.run()
    steps.check_exact(again, list(range(20, 32)))


@pytest.mark.parametrize("overlap", [False, True])
def test_out_of_memory_while_decoding(small: ReferenceModel, overlap: bool) -> None:
    """The younger half gives way, and again until the rest fits; the rest is exact."""
    steps = Steps(small, overlap=overlap)
    sequences = [steps.add(5 + i) for i in range(8)]
    steps.step()

    def inject(step: StepInputs) -> None:
        if len(step.page_tables) > 3:
            raise torch.OutOfMemoryError("no memory left")

    steps.network.inject = inject
    steps.run()
    ends = [steps.failure(sequence) for sequence in sequences]
    assert ends[:2] == [None, None]
    for i, sequence in enumerate(sequences):
        if ends[i] is None:
            steps.check_exact(sequence, [5 + i])
        else:
            assert ends[i] is Failure.OUT_OF_MEMORY


def test_no_memory_for_anything(small: ReferenceModel) -> None:
    """Everybody is told; with memory again the next one runs."""
    steps = Steps(small)
    steps.network.fault = torch.OutOfMemoryError("no memory left")
    sequences = [steps.add(5), steps.add(1, 2, 3), steps.add(4, 5, 6)]
    steps.run()
    assert {steps.failure(sequence) for sequence in sequences} == {Failure.OUT_OF_MEMORY}
    steps.network.fault = None
    good = steps.add(5)
    steps.run()
    steps.check_exact(good, [5])


def test_logits_that_are_not_finite_end_their_own_sequence(small: ReferenceModel) -> None:
    steps = Steps(small)
    good, bad, other = steps.add(5), steps.add(6), steps.add(7)
    steps.step()

    def spoil(logits: torch.Tensor) -> None:
        logits[1] = torch.nan

    steps.network.spoil = spoil
    steps.step()
    steps.network.spoil = None
    steps.run()
    steps.check_exact(good, [5])
    steps.check_exact(other, [7])
    assert steps.failure(bad) is Failure.NOT_FINITE


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyError("a bug"), AssertionError()])
def test_an_exception_in_a_step_ends_its_sequences_and_no_others(
    small: ReferenceModel, error: Exception
) -> None:
    steps = Steps(small)
    sequences = [steps.add(5), steps.add(1, 2, 3)]
    steps.network.fault = error
    steps.step()
    steps.network.fault = None
    assert [steps.failure(sequence) for sequence in sequences] == [Failure.STEP] * 2
    good = steps.add(5)
    steps.run()
    steps.check_exact(good, [5])


def test_a_device_fault_is_the_end(small: ReferenceModel) -> None:
    steps = Steps(small)
    steps.add(5)
    steps.network.fault = RuntimeError("CUDA error: an illegal memory access\nSet CUDA_LAUNCH")
    with pytest.raises(DeviceFaultError, match=r"^CUDA error: an illegal memory access$"):
        steps.core.step()


@pytest.mark.parametrize("on_cuda", [False, True])
@pytest.mark.parametrize(
    ("error", "on_cpu", "on_gpu"),
    [
        *((error, Fault.OUT_OF_MEMORY, Fault.OUT_OF_MEMORY) for error in OUT_OF_MEMORY),
        *(
            (error, Fault.DEVICE, Fault.DEVICE)
            for error in (
                torch.AcceleratorError("CUDA error: unspecified launch failure"),
                torch.AcceleratorError("CUDA error: out of memory"),  # not the allocator's
                RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
            )
        ),
        *(
            (RuntimeError(text), Fault.STEP, Fault.DEVICE)
            for text in (
                "Triton Error [CUDA]: an illegal memory access was encountered",
                "cuDNN error: CUDNN_STATUS_MAPPING_ERROR",
                "shape mismatch",
            )
        ),
        (KeyError("a bug"), Fault.STEP, Fault.STEP),
        (ValueError("can't allocate memory, says a client"), Fault.STEP, Fault.STEP),
    ],
)
def test_how_far_a_fault_reaches(
    error: Exception, on_cpu: Fault, on_gpu: Fault, on_cuda: bool
) -> None:
    assert classify(error, on_cuda=on_cuda) is (on_gpu if on_cuda else on_cpu)


@pytest.mark.parametrize("overlap", [False, True])
def test_out_of_memory_beside_those_that_decode(small: ReferenceModel, overlap: bool) -> None:
    """In a mixed step: the prompts wait again, those that decode keep their places and pages."""
    steps = Steps(small, overlap=overlap)
    decoding = [steps.add(5 + i) for i in range(3)]
    for _ in range(3):
        steps.step()
    places = [(one.batch_index, one.epoch, one.page_table) for one in decoding]
    prompts = [steps.add(*range(10 * i, 10 * i + 6)) for i in range(1, 4)]
    shapes: list[tuple[int, int]] = []

    def inject(step: StepInputs) -> None:
        shapes.append((step.num_decodes, len(step.chunks)))
        if len(step.chunks) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    steps.network.inject = inject
    steps.step()
    assert shapes == [(3, 3)]
    assert [(one.batch_index, one.epoch, one.page_table) for one in decoding] == places
    assert all(one.status is SequenceStatus.WAITING for one in prompts)
    steps.run()
    assert shapes[1:4] == [(3, 1), (4, 1), (5, 1)]
    for i, sequence in enumerate(decoding):
        steps.check_exact(sequence, [5 + i])
        assert sequence.epoch == 1  # left once, at its end
    for i, sequence in enumerate(prompts, start=1):
        steps.check_exact(sequence, list(range(10 * i, 10 * i + 6)))


def test_a_hanging_step_shows(small: ReferenceModel) -> None:
    network = FaultyNetwork(load(small.folder))
    hang = threading.Event()
    with RunningEngine(cast("GPTJNetwork", network)) as engine:
        assert engine.engine.step_seconds == 0
        network.inject = lambda _: cast("None", hang.wait(30))
        submitted = engine.submit([5], GREEDY)
        try:
            wait_for(lambda: engine.engine.step_seconds > 0.2)
        finally:
            hang.set()
        network.inject = None
        assert submitted.result()[1] is FinishReason.LENGTH
        wait_for(lambda: engine.engine.step_seconds == 0)


def test_a_request_that_nobody_waits_for_costs_no_step(small: ReferenceModel) -> None:
    """A hundred long ones are cancelled while they wait and run; the next one runs at once."""
    network = FaultyNetwork(load(small.folder))
    steps: list[float] = []
    network.inject = lambda _: steps.append(time.monotonic())
    long, short = replace(GREEDY, max_length=128), replace(GREEDY, max_length=2)
    with RunningEngine(cast("GPTJNetwork", network), max_batch_size=4) as engine:
        many = [engine.submit([1 + i % 60], long) for i in range(100)]
        many[0].events.get(timeout=10)
        for one in many:
            one.handle.end()
        cancelled = time.monotonic()
        last = engine.submit([5], short)
        assert last.result() == (small.greedy([5], short), FinishReason.LENGTH)
        ended = time.monotonic()
        assert engine.pages_in_use == 0
    # At most the one that ran when they were cancelled, and its own.
    assert sum(cancelled < at < ended for at in steps) <= 2
