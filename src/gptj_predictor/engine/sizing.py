"""How much memory the largest step and the graphs take, by trying.

It needs torch alone, so that whoever has a network can size its KV cache.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from gptj_predictor.engine.core import EngineConfig, EngineCore
from gptj_predictor.engine.graphs import Capture, ladder
from gptj_predictor.model.network import GPTJNetwork


@dataclass(frozen=True)
class MemoryReading:
    """What a GPU's memory was in use for at one moment, in bytes.

    Attributes:
        total: All there is.
        free: Nobody's.
        reserved: torch's allocator's, in use or not.
        peak_reserved: The most that was since the last :meth:`MemoryGauge.release`.
    """

    total: int
    free: int
    reserved: int
    peak_reserved: int

    @property
    def outside(self) -> int:
        """Not the allocator's: contexts, libraries, kernels, graphs, other processes."""
        return self.total - self.free - self.reserved


class MemoryGauge(Protocol):
    """Reads the memory of GPUs."""

    def release(self) -> None:
        """Wait for all work, give back what nobody uses, and measure peaks from here."""

    def read(self) -> Mapping[torch.device, MemoryReading]:
        """Each device's."""


class CudaGauge:
    """The :class:`MemoryGauge` of real GPUs."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        """Read those of ``devices``."""
        self._devices = devices

    def release(self) -> None:
        """See :meth:`MemoryGauge.release`."""
        gc.collect()
        for device in self._devices:
            torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        for device in self._devices:
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[torch.device, MemoryReading]:
        """See :meth:`MemoryGauge.read`."""
        readings = {}
        for device in self._devices:
            torch.cuda.synchronize(device)
            free, total = torch.cuda.mem_get_info(device)
            readings[device] = MemoryReading(
                total,
                free,
                torch.cuda.memory_reserved(device),
                torch.cuda.max_memory_reserved(device),
            )
        return readings


def bytes_taken(peak: MemoryReading, left: MemoryReading, graphs: int) -> int:
    """What has to be free for work that was done, to be done again.

    Args:
        peak: Read when it was done.
        left: Read when all that it made had been given back. What still is in use then, such as
            kernels and workspaces of libraries, is not needed a second time.
        graphs: How many there will be. One was captured, the largest; the others use its memory of
            torch's allocator, but each has its own with the driver.
    """
    inside = peak.peak_reserved - left.reserved
    return max(0, inside) + max(0, peak.outside - left.outside) * max(1, graphs)


class _LargestOnly:
    """Captures what comes first, the largest rung, and lets the others run as they are."""

    def __init__(self, capture: Capture) -> None:
        self._capture: Capture | None = capture

    def __call__(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        capture, self._capture = self._capture, None
        return run if capture is None else capture(run)


def measure_step(
    network: GPTJNetwork, config: EngineConfig, capture: Capture | None, gauge: MemoryGauge
) -> dict[torch.device, int]:
    """Run the largest step and capture the largest graph against a cache of one page.

    All that was made for it is dropped again. Graphs hold the cache's addresses, so those that are
    to stay have to be captured when the cache has its final size.

    Args:
        network: On GPUs alone.
        config: The engine's; its number of pages is not used.
        capture: What will capture its decoding, if anything. No graph of it is left.
        gauge: Of all GPUs that the network is on.

    Returns:
        For each, the bytes that have to stay free beside weights and KV cache.

    Raises:
        torch.OutOfMemoryError: the largest step does not fit beside the weights.
    """
    gauge.release()
    core = EngineCore(network, replace(config, num_pages=1), capture and _LargestOnly(capture))
    core.rehearse()
    peak = gauge.read()
    del core
    gauge.release()
    graphs = 0 if capture is None else len(ladder(config.max_batch_size))
    return {
        device: bytes_taken(peak[device], left, graphs) for device, left in gauge.read().items()
    }
