"""Capturing work on a GPU, to repeat it with one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gptj_predictor.model.network import GPTJNetwork

#: Makes a callable that repeats what a callable does on the device, each time into the same tensor.
Capture = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]


def capture_for(network: GPTJNetwork) -> Capture | None:
    """What captures a network's decoding: CUDA, if it lies on one GPU whose attention allows it."""
    (first, *others) = network.attentions.items()
    device, attention = first
    if device.type != "cuda" or others or not attention.capturable:
        return None
    return cuda_capture()


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
