"""Capturing work on a GPU, to repeat it with one launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from gptj_predictor.common.collector import garbage_collector_off
from gptj_predictor.model.attention import Attention
from gptj_predictor.model.network import GPTJNetwork


def capture_for(network: GPTJNetwork) -> CudaCapture | None:
    """What captures a network's decoding: CUDA, if it lies on one GPU whose attention allows it."""
    if not can_capture(network.attentions):
        return None
    (device,) = network.attentions
    return CudaCapture(device)


def can_capture(attentions: Mapping[torch.device, Attention]) -> bool:
    """Whether decoding with them can be captured."""
    (first, *others) = attentions.items()
    device, attention = first
    return device.type == "cuda" and not others and attention.capturable


class CudaCapture:
    """Capture with CUDA.

    All graphs share one pool of memory, since only one runs at a time, and one stream: a library's
    workspace belongs to a stream, and cuBLAS's takes 32 MiB on Hopper.
    """

    def __init__(self, device: torch.device) -> None:
        """Take a stream and a pool on ``device``."""
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def renew_pool(self) -> None:
        """Let the pool go, when all its graphs have gone; the next ones get another."""
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """A callable that repeats what ``run`` does on the device, into the same tensor."""
        # Once outside of the graph, so that libraries and Triton can set themselves up.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with garbage_collector_off(), torch.cuda.graph(graph, self._pool, self._stream):
            output = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay
