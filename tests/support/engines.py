"""A real engine in this process, for tests that need no HTTP."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from gptj_predictor.engine.engine import Engine, EngineConfig, Handle
from gptj_predictor.engine.request import Event, FinishReason, SamplingParams
from gptj_predictor.snapshot.folder import SnapshotFolder
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


class RunningEngine:
    """An engine over a snapshot folder, stopped at the end of the ``with``."""

    def __init__(
        self,
        folder: Path,
        *,
        max_batch_size: int = 64,
        max_prefill_tokens: int = 4096,
        page_size: int = 4,
        kv_cache_bytes: int = 2**26,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        network = load_network(SnapshotFolder.open(folder), dtype, CPU)
        config = EngineConfig(max_batch_size, max_prefill_tokens, page_size, kv_cache_bytes)
        self.engine = Engine(network, CPU, config)

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
        return self.engine.scheduler.pool.used

    def submit(self, prompt_ids: list[int], params: SamplingParams) -> Submitted:
        events: queue.Queue[Event] = queue.Queue()
        return Submitted(self.engine.submit(prompt_ids, params, events.put), events)
