"""The clock by which a network's products are chosen, before graphs are captured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from gptj_predictor.common.collector import garbage_collector_off
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.product_choice import CallTimer, describe

logger = logging.getLogger(__name__)

#: Of so many tries the quickest counts.
_TRIES = 3

Calls = list[Callable[[], object]]


def choose_products(network: GPTJNetwork, timer: CallTimer | None, *, graphs: bool) -> None:
    """Have a network choose, the first time, how its products are computed; log what came of it.

    Args:
        network: Whose. On GPUs all of it has to lie where our kernels run.
        timer: Measures; by default the GPUs' clock.
        graphs: Whether decoding will be replayed from graphs.
    """
    if network.product_choices is not None:
        return
    if timer is None:
        can_launch = all(attention.capturable for attention in network.attentions.values())
        if any(device.type != "cuda" for device in network.placement.devices) or not can_launch:
            return
        timer = GpuTimer(graphs=graphs)
    started = time.perf_counter()
    if choices := network.choose_products(timer):
        seconds = time.perf_counter() - started
        logger.info("products, chosen in %.1f s: %s", seconds, describe(choices))


class GpuTimer:
    """Times calls as decoding will make them: replayed from a graph, or one by one.

    Launched one by one, short kernels wait for Python. All is on one stream for each device, as a
    library's workspace belongs to a stream.
    """

    def __init__(self, *, graphs: bool) -> None:
        """With or without graphs."""
        self._graphs = graphs
        self._streams: dict[int, torch.cuda.Stream] = {}

    def __call__(self, calls: Calls) -> float:
        """Seconds that the current device takes for all calls."""
        device = torch.cuda.current_device()
        stream = self._streams.setdefault(device, torch.cuda.Stream(device))
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _run(calls)  # Triton loads its kernels, and libraries take their memory
            run = self._captured(calls, stream) if self._graphs else lambda: _run(calls)
            run()
            seconds = min(_seconds(run) for _ in range(_TRIES))
        torch.cuda.current_stream().wait_stream(stream)
        return seconds

    @staticmethod
    def _captured(calls: Calls, stream: torch.cuda.Stream) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        with garbage_collector_off(), torch.cuda.graph(graph, stream=stream):
            _run(calls)
        return graph.replay


def _run(calls: Calls) -> None:
    for call in calls:
        call()


def _seconds(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
