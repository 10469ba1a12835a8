"""A GPU's memory that is made up: an allocator like torch's, and what lies outside of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import torch

from gptj_predictor.engine.sizing import MemoryReading
from gptj_predictor.model.step_inputs import StepInputs

GPU = torch.device("cuda", 0)
MIB = 2**20


class FakeGpu:
    """Counts bytes. What is given back to the allocator stays reserved until it is released.

    Attributes:
        total: Bytes of the card.
        outside: Taken by others than the allocator.
        allocated: In use, of what the allocator reserved.
        lowest: The least that was ever free.
    """

    def __init__(self, total: int, context: int) -> None:
        self.total, self.outside = total, context
        self.allocated = self.reserved = self.peak = 0
        self.lowest = total - context

    @property
    def free(self) -> int:
        return self.total - self.outside - self.reserved

    def allocate(self, size: int) -> None:
        """Take from what is reserved, and reserve what is missing.

        Raises:
            torch.OutOfMemoryError: the card is full.
        """
        missing = max(0, self.allocated + size - self.reserved)
        if missing > self.free:
            raise torch.OutOfMemoryError(f"tried to allocate {size}, {self.free} are free")
        self.allocated += size
        self.reserved += missing
        self.peak = max(self.peak, self.reserved)
        self.lowest = min(self.lowest, self.free)

    def give_back(self, size: int) -> None:
        self.allocated -= size

    def load(self, size: int) -> None:
        """Outside of the allocator: kernels, a graph.

        Raises:
            torch.OutOfMemoryError: the card is full.
        """
        if size > self.free:
            raise torch.OutOfMemoryError("no memory for a kernel or graph")
        self.outside += size
        self.lowest = min(self.lowest, self.free)

    # As a gauge.

    def release(self) -> None:
        gc.collect()
        self.reserved = self.peak = self.allocated

    def read(self) -> dict[torch.device, MemoryReading]:
        return {GPU: MemoryReading(self.total, self.free, self.reserved, self.peak)}


class Load:
    """What a network of given sizes does to a :class:`FakeGpu`, step by step and graph by graph.

    Attributes:
        step_bytes: Of a step with so many tokens, rows of logits and gathered keys.
        graph_bytes: Outside, of each graph.
        kernel_bytes: Outside, once, when the first step runs.
    """

    def __init__(
        self,
        gpu: FakeGpu,
        *,
        step_bytes: Callable[[int, int, int], int],
        graph_bytes: int,
        kernel_bytes: int,
    ) -> None:
        self.gpu, self.step_bytes = gpu, step_bytes
        self.graph_bytes, self.kernel_bytes = graph_bytes, kernel_bytes
        self._pool = 0  # what all graphs share of the allocator
        self._graphs = 0
        self.peaks: list[tuple[int, int, int]] = []

    def inject(self, step: StepInputs) -> None:
        """Before a step: take its memory and give it back."""
        kernels, self.kernel_bytes = self.kernel_bytes, 0
        self.gpu.load(kernels)
        rows = step.num_decodes + len(step.chunks)
        gathered = max(
            (0 if launch.slots is None else len(launch.slots) for launch in step.prefill_launches),
            default=0,
        )
        sizes = len(step.token_ids), rows, gathered
        self.peaks.append(sizes)
        size = self.step_bytes(*sizes)
        self.gpu.allocate(size)
        self.gpu.give_back(size)

    def capture(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """A graph: its pool is as large as the largest step that was captured."""
        output = run()
        _, rows, _ = self.peaks[-1]
        size = self.step_bytes(rows, rows, 0)
        if size > self._pool:
            self.gpu.allocate(size - self._pool)
            self._pool = size
        self.gpu.load(self.graph_bytes)
        self._graphs += 1

        def replay() -> torch.Tensor:
            run()
            return output

        weakref.finalize(replay, self._drop)
        return replay

    def _drop(self) -> None:
        self.gpu.outside -= self.graph_bytes
        self._graphs -= 1
        if not self._graphs:
            self.gpu.give_back(self._pool)
            self._pool = 0
