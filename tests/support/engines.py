"""A real engine in this process, for tests that need no HTTP."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from gptj_predictor.devices.memory import kv_cache_pages
from gptj_predictor.engine.core import EngineConfig
from gptj_predictor.engine.engine import Engine, Handle
from gptj_predictor.engine.request import Event, FinishReason
from gptj_predictor.model.network import GPTJNetwork, Placement
from gptj_predictor.model.step_inputs import StepInputs
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.layout import NetworkLayout
from gptj_predictor.snapshot.load import load_network

CPU = torch.device("cpu")
GREEDY = SamplingParams(
    min_length=0,
    max_length=40,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    repetition_penalty=1.0,
    seed=0,
)


def load(
    folder: Path, dtype: torch.dtype = torch.float32, placement: Placement | None = None
) -> GPTJNetwork:
    """The network of a snapshot folder, on the CPU."""
    snapshot = SnapshotFolder.open(folder)
    placement = placement or Placement.on(CPU, snapshot.config.n_layer)
    return load_network(snapshot, dtype, placement)


def checkpoint_tensors(network: GPTJNetwork) -> dict[str, torch.Tensor]:
    """A network's weights, none of them packed, under their names in a checkpoint."""
    places = NetworkLayout(network.config).places
    return {name: place.of(network.weights[place.parameter]) for name, place in places.items()}


@dataclass
class Submitted:
    """A sequence that was submitted, and its events as they come."""

    handle: Handle
    events: queue.Queue[Event] = field(default_factory=queue.Queue)

    def result(self, timeout: float = 60) -> tuple[list[int], FinishReason]:
        """Wait for the end."""
        tokens = []
        while True:
            event = self.events.get(timeout=timeout)
            if event.token_id is not None:
                tokens.append(event.token_id)
            if event.finish_reason is not None:
                return tokens, event.finish_reason


def make_config(
    network: GPTJNetwork,
    *,
    max_batch_size: int = 64,
    max_prefill_tokens: int = 4096,
    page_size: int = 4,
    kv_cache_bytes: int | dict[torch.device, int] = 2**26,
    **more: Any,
) -> EngineConfig:
    """Sizes for a network whose KV cache takes so many bytes on each device."""
    layers, config = network.placement.layers, network.config
    if isinstance(kv_cache_bytes, int):
        kv_cache_bytes = {CPU: kv_cache_bytes}
    return EngineConfig(
        max_batch_size=max_batch_size,
        max_prefill_tokens=max_prefill_tokens,
        page_size=page_size,
        num_pages=kv_cache_pages(
            kv_cache_bytes,
            layers,
            page_size=page_size,
            token_bytes=2 * config.n_embd * network.dtype.itemsize,
            max_pages=max_batch_size * -(-config.n_positions // page_size),
        ),
        **more,
    )


class FaultyNetwork:
    """A network that goes wrong as it is told.

    Attributes:
        fault: Raised by every step while it is set.
        inject: Called before every step while it is set; it may raise, or take its time.
        spoil: Called with all logits while it is set; it may change them.
    """

    def __init__(self, network: GPTJNetwork) -> None:
        self._network = network
        self.fault: Exception | None = None
        self.inject: Callable[[StepInputs], None] | None = None
        self.spoil: Callable[[torch.Tensor], None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def hidden_states(self, step: StepInputs, *inputs: Any) -> torch.Tensor:
        if self.fault is not None:
            raise self.fault
        if self.inject is not None:
            self.inject(step)
        return self._network.hidden_states(step, *inputs)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self._network.logits(hidden)
        if self.spoil is not None:
            self.spoil(logits)
        return logits


class RunningEngine:
    """An engine over a snapshot folder or a network, stopped at the end of the ``with``."""

    def __init__(
        self, source: Path | GPTJNetwork, *, dtype: torch.dtype = torch.float32, **sizes: Any
    ) -> None:
        network = load(source, dtype) if isinstance(source, Path) else source
        self.engine = Engine(network, make_config(network, **sizes))

    def __enter__(self) -> Self:
        self.engine.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.engine.stop()

    @property
    def pages_in_use(self) -> int:
        return self.engine.stats().used_pages

    def submit(self, prompt_ids: list[int], params: SamplingParams) -> Submitted:
        events: queue.Queue[Event] = queue.Queue()
        return Submitted(self.engine.submit(prompt_ids, params, events.put), events)
