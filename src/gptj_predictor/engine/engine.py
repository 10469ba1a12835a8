"""The engine: one thread that runs all sequences together, one token a step."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

import torch

from gptj_predictor.engine.pages import PagePool
from gptj_predictor.engine.request import (
    EngineDeadError,
    Event,
    EventSink,
    FinishReason,
    SamplingParams,
)
from gptj_predictor.engine.runner import ModelRunner
from gptj_predictor.engine.sampler import Sampler
from gptj_predictor.engine.scheduler import Scheduler
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.model.kv_cache import PagedKVCache
from gptj_predictor.model.network import GPTJNetwork

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of an engine.

    Attributes:
        max_batch_size: Sequences that run together.
        max_prefill_tokens: Prompt tokens that one step takes in; a longer prompt goes alone.
        page_size: Tokens per page of the KV cache.
        kv_cache_bytes: Upper limit for the KV cache; less is taken if the batch cannot use it.
    """

    max_batch_size: int
    max_prefill_tokens: int
    page_size: int
    kv_cache_bytes: int


class Handle:
    """A submitted sequence, for whoever submitted it."""

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        self._engine = engine
        self._sequence = sequence

    def cancel(self) -> None:
        """Stop the sequence before its next step; its last event says ``CANCELLED``.

        Callable from any thread, more than once, and after the end.
        """
        self._sequence.cancelled = True
        self._engine.wake()


class Engine:
    """Runs sequences until they end; they join and leave between steps.

    ``submit`` and ``Handle.cancel`` may be called from any thread; everything else that touches
    sequences happens in the engine's own thread.
    """

    def __init__(self, network: GPTJNetwork, device: torch.device, config: EngineConfig) -> None:
        """Allocate the KV cache; :meth:`start` starts the thread.

        Raises:
            ValueError: ``kv_cache_bytes`` does not hold one page.
        """
        shape = network.config
        geometry = {
            "layers": shape.n_layer,
            "page_size": config.page_size,
            "heads": shape.n_head,
            "head_size": network.head_size,
        }
        page_bytes = PagedKVCache.bytes_per_page(**geometry, dtype=network.dtype)
        usable = config.max_batch_size * -(-shape.n_positions // config.page_size)
        pages = min(usable, config.kv_cache_bytes // page_bytes - 1)
        if pages < 1:
            raise ValueError(
                f"a KV cache of {config.kv_cache_bytes} bytes is too small; the least is "
                f"{2 * page_bytes}"
            )
        cache = PagedKVCache(**geometry, pages=pages + 1, dtype=network.dtype, device=device)
        self.context = int(shape.n_positions)
        self.eos_token_ids = _eos_token_ids(shape.eos_token_id)
        self.runner = ModelRunner(network, cache, device)
        self.sampler = Sampler(self.eos_token_ids, device)
        self.scheduler = Scheduler(
            PagePool(pages + 1, config.page_size),
            max_batch_size=config.max_batch_size,
            max_prefill_tokens=config.max_prefill_tokens,
        )
        self._inbox: deque[Sequence] = deque()
        self._wakeup = threading.Condition()
        self._woken = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; sequences that still run are cancelled."""
        self._stopping = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether submitted sequences will be answered."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, prompt_ids: list[int], params: SamplingParams, sink: EventSink) -> Handle:
        """Queue a prompt.

        Args:
            prompt_ids: At least one token and fewer than ``params.max_length``.
            params: How to choose tokens and when to end.
            sink: Told of every new token and of the end, from the engine's thread.

        Raises:
            RequestRefusedError: the sequence can never fit the KV cache.
            EngineDeadError: the engine does not run.
        """
        if not 0 < len(prompt_ids) < params.max_length <= self.context:
            raise ValueError(
                f"a prompt of {len(prompt_ids)} tokens with max_length {params.max_length} in a "
                f"context of {self.context}"
            )
        sequence = Sequence(token_ids=list(prompt_ids), params=params, sink=sink)
        self.scheduler.check_fits(sequence)
        with self._wakeup:
            if not self.alive:
                raise EngineDeadError("the engine is not running")
            self._inbox.append(sequence)
        self.wake()
        return Handle(self, sequence)

    def wake(self) -> None:
        """Make the thread look for new work."""
        with self._wakeup:
            self._woken = True
            self._wakeup.notify()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._take_news()
                if self.scheduler.running or self.scheduler.waiting:
                    self._step()
                else:
                    self._sleep()
            self._end_all(Event(finish_reason=FinishReason.CANCELLED))
        except BaseException:
            logger.exception("the engine died")
            self._end_all(Event(finish_reason=FinishReason.ERROR, error="the engine died"))
            raise

    def _sleep(self) -> None:
        with self._wakeup:
            self._wakeup.wait_for(lambda: self._woken)
            self._woken = False

    def _take_news(self) -> None:
        while self._inbox:
            self.scheduler.add(self._inbox.popleft())
        for sequence in self.scheduler.drop_cancelled():
            sequence.sink(Event(finish_reason=FinishReason.CANCELLED))

    def _step(self) -> None:
        sequences, new_pages = self.scheduler.plan()
        try:
            self.runner.cache.clear(new_pages)
            logits = self.runner.run(sequences)
            tokens = self.sampler.sample(logits, sequences)
        except RuntimeError as error:  # torch's own, out of memory included
            logger.exception("a step of %d sequences failed", len(sequences))
            for sequence in sequences:
                self._end(sequence, Event(finish_reason=FinishReason.ERROR, error=str(error)))
            return
        for sequence, token in zip(sequences, tokens, strict=True):
            self._advance(sequence, token)

    def _advance(self, sequence: Sequence, token: int | None) -> None:
        if token is None:
            error = "the network gave no finite logits"
            self._end(sequence, Event(finish_reason=FinishReason.ERROR, error=error))
            return
        sequence.cached = len(sequence.token_ids)
        sequence.token_ids.append(token)
        if token in self.eos_token_ids:
            self._end(sequence, Event(token, FinishReason.STOP))
        elif len(sequence.token_ids) >= sequence.params.max_length:
            self._end(sequence, Event(token, FinishReason.LENGTH))
        else:
            sequence.sink(Event(token))

    def _end(self, sequence: Sequence, event: Event) -> None:
        self.scheduler.remove(sequence)
        sequence.sink(event)

    def _end_all(self, event: Event) -> None:
        """Tell everyone, so that nobody waits for a thread that is gone."""
        with self._wakeup:
            self._stopping = True
            sequences = [*self._inbox, *self.scheduler.running, *self.scheduler.waiting]
            self._inbox.clear()
        self.scheduler.running.clear()
        self.scheduler.waiting.clear()
        for sequence in sequences:
            if sequence.pages:
                self.scheduler.pool.give_back(sequence.pages)
            sequence.sink(event)


def _eos_token_ids(configured: int | list[int] | None) -> tuple[int, ...]:
    if configured is None:
        return ()
    return tuple(configured) if isinstance(configured, list) else (configured,)
