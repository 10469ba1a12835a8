"""Decoding replayed from CUDA graphs: one launch a step instead of hundreds.

A graph repeats fixed kernels on fixed memory. So decoding is captured for a ladder of batch sizes
and reads its inputs from a static buffer. A batch between two rungs is padded with sequences that
belong to nobody and write to the null page.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch

from gptj_predictor.engine.decode_inputs import DecodeInputs

logger = logging.getLogger(__name__)

#: Makes a callable that repeats what a callable does on the device, each time into the same
#: result. This is the seam between the ladder and CUDA.
Capture = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]


def ladder(max_batch_size: int) -> list[int]:
    """Batch sizes to capture: close together where padding costs a larger share."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 257, 16), *range(288, max_batch_size, 32)]
    return [size for size in sizes if size < max_batch_size] + [max_batch_size]


class DecodeGraphs:
    """A graph for every rung of the ladder; all read their inputs from one static buffer."""

    def __init__(
        self,
        run: Callable[[DecodeInputs], torch.Tensor],
        capture: Capture,
        *,
        max_batch_size: int,
        max_pages: int,
        padding_index: int,
        device: torch.device,
    ) -> None:
        """Capture all rungs, the largest first, so that the others fit into its memory.

        Args:
            run: From D decoding sequences to their next tokens ``[D]``, always in the same memory.
            capture: Makes a graph of a callable.
            max_batch_size: The last rung; no larger batch can be replayed.
            max_pages: Width of the page tables.
            padding_index: The batch index that padding reads its tokens from.
            device: Where the buffer is.
        """
        started = time.perf_counter()
        self._sizes = ladder(max_batch_size)
        largest = DecodeInputs.num_bytes(max_batch_size, max_pages)
        self._buffer = torch.empty(largest, dtype=torch.uint8, device=device)
        self._replays: dict[int, Callable[[], torch.Tensor]] = {}
        for size in reversed(self._sizes):
            inputs = DecodeInputs.of(self._buffer, size, max_pages)
            inputs.buffer.copy_(DecodeInputs.padding(size, max_pages, padding_index).buffer)
            self._replays[size] = capture(partial(run, inputs))
        seconds = time.perf_counter() - started
        logger.info("captured %d decode graphs in %.1f s", len(self._sizes), seconds)

    def size_for(self, count: int) -> int:
        """The rung that ``count`` sequences are replayed on: they are padded up to it."""
        return self._sizes[bisect_left(self._sizes, count)]

    def replay(self, inputs: DecodeInputs) -> torch.Tensor:
        """The next tokens ``[D]`` of D sequences, padding included; ``inputs`` are on the host."""
        buffer = inputs.pin(self._buffer.device)
        self._buffer[: len(buffer)].copy_(buffer, non_blocking=True)
        return self._replays[inputs.lengths.shape[0]]()
