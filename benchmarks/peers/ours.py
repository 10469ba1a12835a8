"""Our engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch
from transformers import GPTJConfig

from gptj_predictor.common.threads import alone
from gptj_predictor.engine.core import EngineConfig
from gptj_predictor.engine.engine import Engine
from gptj_predictor.engine.request import Event
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.quantization import WeightQuantization
from gptj_predictor.sampling.params import SamplingParams
from peers.peer import Peer
from peers.timing import Prompts, Timing
from peers.weights import CPU, make_model, make_network

#: Seconds after which a sequence that has not ended is given up.
PATIENCE = 300

#: From a sequence's length, prompt included, and its place among those of a run.
Sampling = Callable[[int, int], SamplingParams]


def greedy(length: int, place: int = 0) -> SamplingParams:
    """The most likely tokens, exactly ``length`` of them, prompt included."""
    return SamplingParams(
        min_length=length,
        max_length=length,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        seed=place,
    )


class Ours(Peer):
    """Our engine. Its thread runs only while it is measured, see :func:`alone`."""

    def __init__(
        self, engine: Engine, name: str, step_bytes: int, sampling: Sampling = greedy
    ) -> None:
        super().__init__(name, step_bytes)
        self.engine = engine
        self.sampling = sampling

    def run(self, prompts: Prompts, new: int, *, last_stream: type[Stream] | None = None) -> Timing:
        """See :meth:`Peer.run`; ``last_stream`` takes the last sequence's events."""
        self.engine.start()
        try:
            return self._run(prompts, new, last_stream or Stream)
        finally:
            self.engine.stop()

    def _run(self, prompts: Prompts, new: int, last_stream: type[Stream]) -> Timing:
        ends = threading.Semaphore(0)
        streams = [Stream(ends) for _ in prompts[1:]] + [last_stream(ends)]
        params = [self.sampling(len(prompt) + new, place) for place, prompt in enumerate(prompts)]
        started = time.perf_counter()
        for prompt, wanted, stream in zip(prompts, params, streams, strict=True):
            self.engine.submit(prompt, wanted, stream)
        for _ in prompts:
            if not ends.acquire(timeout=PATIENCE):
                raise RuntimeError(f"no sequence ended in {PATIENCE} s")
        for stream in streams:
            if len(stream.tokens) != new:
                raise RuntimeError(f"{len(stream.tokens)} tokens instead of {new}: {stream.end}")
        # The one whose first token came last: from then on no prompt is computed any more.
        last = max(streams, key=lambda stream: stream.times[0])
        return Timing.of(streams[0].tokens, started, last.times)


class Stream:
    """Takes one sequence's events and notes when each token came."""

    def __init__(self, ends: threading.Semaphore) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []
        self.end: Event | None = None
        self._ends = ends

    def __call__(self, event: Event) -> None:
        """Take an event, in the engine's thread."""
        if event.token_id is not None:
            self.times.append(time.perf_counter())
            self.tokens.append(event.token_id)
        if event.finish_reason is not None:
            self.end = event
            self._ends.release()


def name_of(quantization: WeightQuantization) -> str:
    """Our name in the tables."""
    return "ours" if quantization == "none" else f"ours {quantization}"


def make_ours(
    config: GPTJConfig,
    dtype: str,
    step_bytes: int,
    threads: int,
    engine: EngineConfig,
    quantization: WeightQuantization,
) -> Peer:
    """Our engine on a CPU with the weights that everyone has."""
    torch.set_num_threads(threads)

    def load() -> GPTJNetwork:
        model = make_model(config, getattr(torch, dtype), CPU)
        return make_network(config, model, CPU, quantization)

    return Ours(Engine(alone(load), engine), name_of(quantization), step_bytes)
