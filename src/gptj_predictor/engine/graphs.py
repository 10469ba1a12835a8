"""Decoding replayed from CUDA graphs: one launch a step instead of hundreds.

A graph repeats fixed kernels on fixed memory. So decoding is captured for a ladder of batch sizes,
reads its inputs from static buffers. A batch between two rungs is padded with sequences that belong
to nobody and write to the null page.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch

from gptj_predictor.engine.batch import Batch

logger = logging.getLogger(__name__)

#: Makes a callable that repeats what a callable does on the device, each time into the same
#: result. This is the seam between the ladder and CUDA.
Capture = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]


def ladder(max_batch_size: int) -> list[int]:
    """Batch sizes to capture: close together where padding costs a larger share."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 257, 16), *range(288, max_batch_size, 32)]
    return [size for size in sizes if size < max_batch_size] + [max_batch_size]


class DecodeGraphs:
    """A graph for every rung of the ladder, each with static buffers for its inputs."""

    def __init__(
        self,
        forward: Callable[[Batch], torch.Tensor],
        capture: Capture,
        *,
        max_batch_size: int,
        max_pages: int,
        padding_index: int,
        device: torch.device,
    ) -> None:
        """Capture all rungs, the largest first, so that the others fit into its memory.

        Args:
            forward: From a batch of D decoding sequences to logits ``[D, vocabulary]``.
            capture: Makes a graph of a callable.
            max_batch_size: The last rung; no larger batch can be replayed.
            max_pages: Width of the page tables.
            padding_index: The batch index that padding reads its tokens from.
            device: Where the buffers are.
        """
        started = time.perf_counter()
        self._sizes = ladder(max_batch_size)
        self._padding = Batch.padding(max_batch_size, max_pages, padding_index, device)
        self._inputs: dict[int, Batch] = {}
        self._replays: dict[int, Callable[[], torch.Tensor]] = {}
        for size in reversed(self._sizes):
            inputs = Batch.padding(size, max_pages, padding_index, device)
            self._inputs[size] = inputs
            self._replays[size] = capture(partial(forward, inputs))
        seconds = time.perf_counter() - started
        logger.info("captured %d decode graphs in %.1f s", len(self._sizes), seconds)

    def replay(self, batch: Batch) -> torch.Tensor:
        """Logits ``[D, vocabulary]`` of D decoding sequences, which the next replay overwrites."""
        count = batch.page_tables.shape[0]
        size = self._sizes[bisect_left(self._sizes, count)]
        self._inputs[size].fill(batch, self._padding)
        return self._replays[size]()[:count]
