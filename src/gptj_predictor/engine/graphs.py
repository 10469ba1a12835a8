"""Decoding replayed from CUDA graphs: one launch a step instead of hundreds.

A graph repeats fixed kernels on fixed memory. So decoding is captured for a ladder of batch sizes,
reads its inputs from static buffers, and a batch between two rungs is padded with rows that belong
to nobody and write to the null page.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable

import torch

from gptj_predictor.model.kv_cache import NULL_PAGE

logger = logging.getLogger(__name__)

#: Makes a callable that repeats what a callable does on the device, each time into the same
#: result. This is the seam between the ladder and CUDA.
Capture = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]


def cuda_capture() -> Capture:
    """Capture with CUDA; all graphs share one pool of memory, since only one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        # Once outside of the graph, so that libraries and Triton can set themselves up.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            output = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay

    return capture


def ladder(max_batch_size: int) -> list[int]:
    """Batch sizes to capture: close together where a padding row costs a larger share."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 257, 16), *range(288, max_batch_size, 32)]
    return [size for size in sizes if size < max_batch_size] + [max_batch_size]


class DecodeGraphs:
    """A graph for every rung of the ladder, all reading the same static buffers."""

    def __init__(
        self,
        decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        capture: Capture,
        *,
        max_batch_size: int,
        most_pages: int,
        padding_slot: int,
        device: torch.device,
    ) -> None:
        """Capture all rungs, the largest first, so that the others fit into its memory.

        Args:
            decode: From ``[4, D]`` int64 and ``[D, P]`` int32, see ``ModelRunner.decode``, to
                logits ``[D, vocabulary]``.
            capture: What makes a graph of it.
            max_batch_size: The last rung; no larger batch can be replayed.
            most_pages: P.
            padding_slot: The row of the table of tokens that padding reads.
            device: Where the buffers are.
        """
        started = time.perf_counter()
        self._sizes = ladder(max_batch_size)
        # Padding: the null page's first slot, and a context of that one token.
        padding = torch.tensor([padding_slot, 0, NULL_PAGE, 1])[:, None]
        self._padding = padding.expand(4, max_batch_size).contiguous().to(device)
        self._inputs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._replays: dict[int, Callable[[], torch.Tensor]] = {}
        for size in reversed(self._sizes):
            inputs = self._padding[:, :size].clone()
            tables = torch.full((size, most_pages), NULL_PAGE, dtype=torch.int32, device=device)
            self._inputs[size] = inputs, tables
            self._replays[size] = capture(lambda i=inputs, t=tables: decode(i, t))  # type: ignore[misc]
        seconds = time.perf_counter() - started
        logger.info("captured %d decode graphs in %.1f s", len(self._sizes), seconds)

    def replay(self, decode: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
        """Logits ``[D, vocabulary]``, which the next replay overwrites; arguments on the host."""
        batch = decode.shape[1]
        size = self._sizes[bisect_left(self._sizes, batch)]
        inputs, static_tables = self._inputs[size]
        inputs[:, :batch].copy_(decode, non_blocking=True)
        inputs[:, batch:].copy_(self._padding[:, batch:size])
        static_tables[:batch].copy_(tables, non_blocking=True)
        static_tables[batch:].fill_(NULL_PAGE)
        return self._replays[size]()[:batch]
