"""Which kernels a decode step runs, and how long each takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from peers.ours import Ours, Stream
from peers.timing import Prompts

#: Steps before the profile begins, so that nothing of the prompts is in it.
LEAD = 3


@dataclass(frozen=True)
class KernelTime:
    """One kernel's part of a step: launches of it, and microseconds of all of them."""

    name: str
    launches: float
    microseconds: float


def profile_step(ours: Ours, prompts: Prompts, steps: int) -> list[KernelTime]:
    """The kernels of a step, the costliest first; on a CPU torch's operations.

    The profile begins and ends between two steps of the engine's own thread, which is the one that
    launches. On a GPU a step is launched before the last one's tokens are read, so that of the
    first and the last a part may be missing: figures are sums over ``steps``, divided by these.

    Args:
        ours: The engine.
        prompts: Whose sequences decode together.
        steps: To profile.
    """
    on_gpu = torch.cuda.is_available() and ours.engine.info().devices[0].type == "cuda"
    with profile(activities=[ProfilerActivity.CPU]):
        pass  # what it sets up the first time wants the main thread
    profiler = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])

    class Watched(Stream):
        """The sequence whose tokens start and stop the profile."""

        def __call__(self, event: Any) -> None:
            if event.token_id is not None and len(self.tokens) == LEAD:
                profiler.start()
            if event.token_id is not None and len(self.tokens) == LEAD + steps:
                if on_gpu:
                    torch.cuda.synchronize()
                profiler.stop()
            super().__call__(event)

    ours.run(prompts, LEAD + steps + 4, last_stream=Watched)
    return _kernel_times(profiler, steps, on_gpu=on_gpu)


def _kernel_times(profiler: Any, steps: int, *, on_gpu: bool) -> list[KernelTime]:
    times: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    if on_gpu:
        for event in profiler.events():
            if event.device_type.name == "CUDA":
                times[event.name] += event.time_range.elapsed_us()
                launches[event.name] += 1
    else:
        for event in profiler.key_averages():
            times[event.key] += event.self_cpu_time_total
            launches[event.key] += event.count
    return [
        KernelTime(name, launches[name] / steps, microseconds / steps)
        for name, microseconds in times.most_common()
    ]
