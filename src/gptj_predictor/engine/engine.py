"""The engine: one thread that runs all sequences together, one token a step."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch

from gptj_predictor.engine.graphs import cuda_capture
from gptj_predictor.engine.pages import PageAllocator
from gptj_predictor.engine.request import (
    EngineDeadError,
    Event,
    EventSink,
    FinishReason,
    SamplingParams,
)
from gptj_predictor.engine.runner import LaunchedStep, ModelRunner
from gptj_predictor.engine.sampler import Sampler
from gptj_predictor.engine.scheduler import Scheduler
from gptj_predictor.engine.sequence import Row, Sequence
from gptj_predictor.model.kv_cache import NULL_PAGE, PagedKVCache
from gptj_predictor.model.network import GPTJNetwork

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of an engine.

    Attributes:
        max_batch_size: Sequences that run together.
        max_prefill_tokens: Prompt tokens that one step takes in beside those that decode.
        page_size: Tokens per page of the KV cache.
        kv_cache_bytes: Upper limit for the KV cache on each device that holds layers; less is
            taken if the batch cannot use it.
        enable_prefix_caching: Whether sequences with the same leading tokens share pages.
        cuda_graphs: Whether decoding on a GPU is replayed from graphs.
        overlap: Whether a step is launched before the last one's tokens are read. On a CPU, where
            a launch is the whole computation, that would only make every token late. Default: on
            GPUs.
    """

    max_batch_size: int
    max_prefill_tokens: int
    page_size: int
    kv_cache_bytes: Mapping[torch.device, int]
    enable_prefix_caching: bool = True
    cuda_graphs: bool = True
    overlap: bool | None = None


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

    def __init__(self, network: GPTJNetwork, config: EngineConfig) -> None:
        """Allocate the KV cache; :meth:`start` starts the thread.

        Raises:
            ValueError: ``kv_cache_bytes`` does not hold one page.
        """
        pages = _pages_that_fit(network, config)
        cache = PagedKVCache(
            devices=list(network.placement.layers),
            pages=pages + 1,
            page_size=config.page_size,
            heads=network.config.n_head,
            head_size=network.head_size,
            dtype=network.dtype,
        )
        self.context = int(network.config.n_positions)
        self.eos_token_ids = _eos_token_ids(network.config.eos_token_id)
        self.runner = ModelRunner(
            network,
            cache,
            sampler=Sampler(self.eos_token_ids),
            max_batch_size=config.max_batch_size,
        )
        self.scheduler = Scheduler(
            PageAllocator(pages + 1, config.page_size, reuse=config.enable_prefix_caching),
            max_batch_size=config.max_batch_size,
            max_prefill_tokens=config.max_prefill_tokens,
            context=self.context,
        )
        on_gpu = self.runner.device.type == "cuda"
        self._overlap = on_gpu if config.overlap is None else config.overlap
        self._config = config
        self._launched: LaunchedStep | None = None
        self._inbox: deque[Sequence] = deque()
        self._wakeup = threading.Condition()
        self._woken = False
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, the first time after capturing the graphs, if there will be any.

        On a CPU, load the network in a thread that ends, and compute in no other meanwhile: OpenMP
        gives every computing thread workers of its own, and when there are more of them than CPUs
        they sleep between products instead of spinning (measured: steps a quarter slower).
        """
        self._use_device()
        network, first = self.runner.network, self._thread is None
        capturable = all(attention.capturable for attention in network.attentions.values())
        if first and self._config.cuda_graphs and capturable and len(network.attentions) == 1:
            self.runner.capture_graphs(cuda_capture())
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step; sequences that still run are cancelled.

        It may be started again; what the cache remembers is kept.
        """
        self._stopping = True
        self.wake()
        if self._thread is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether submitted sequences will be answered."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

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
        self.scheduler.check_fits(params.max_length)
        sequence = Sequence(token_ids=list(prompt_ids), params=params, sink=sink)
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

    def _use_device(self) -> None:
        """Make the runner's GPU this thread's own, as graphs and events want it."""
        if self.runner.device.type == "cuda":
            torch.cuda.set_device(self.runner.device)

    def _run(self) -> None:
        try:
            self._use_device()
            while not self._stopping:
                self._take_news()
                if self.scheduler.running or self.scheduler.waiting:
                    self._step()
                else:
                    self._launched = None
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
            self._tell(sequence, Event(finish_reason=FinishReason.CANCELLED))

    def _step(self) -> None:
        """Launch the next step, then deal with the tokens of the last one (or of this one)."""
        launched, self._launched = self._launched, self._launch(self.scheduler.plan())
        if not self._overlap:
            launched, self._launched = self._launched, None
        if launched is not None:
            self._finish(launched)

    def _launch(self, rows: list[Row]) -> LaunchedStep | None:
        if not rows:
            return None
        try:
            for row in rows:
                if row.first:
                    self.runner.admit(row.sequence)
            return self.runner.launch(rows)
        except RuntimeError as error:  # torch's own, out of memory included
            self._fail(rows, error)
            return None

    def _finish(self, step: LaunchedStep) -> None:
        try:
            results = step.wait()
        except RuntimeError as error:
            self._fail(step.rows, error)
            return
        for row, token in results:
            if row.current:
                self._advance(row.sequence, token)

    def _fail(self, rows: list[Row], error: RuntimeError) -> None:
        """End what a failed step was for; what it wrote to the cache is not to be shared."""
        logger.error("a step of %d sequences failed", len(rows), exc_info=error)
        self.scheduler.pool.forget_prefixes()
        for row in rows:
            if row.current:
                self._end(row.sequence, Event(finish_reason=FinishReason.ERROR, error=str(error)))

    def _advance(self, sequence: Sequence, token: int) -> None:
        sequence.in_flight -= 1
        if token < 0:
            error = "the network gave no finite logits"
            self._end(sequence, Event(finish_reason=FinishReason.ERROR, error=error))
            return
        sequence.token_ids.append(token)
        assert sequence.table is not None
        self.scheduler.pool.enter_prefix(sequence.token_ids, sequence.cached, sequence.table)
        if token in self.eos_token_ids:
            self._end(sequence, Event(token, FinishReason.STOP))
        elif len(sequence.token_ids) >= sequence.params.max_length:
            self._end(sequence, Event(token, FinishReason.LENGTH))
        else:
            self._tell(sequence, Event(token))

    def _end(self, sequence: Sequence, event: Event) -> None:
        self.scheduler.remove(sequence)
        self._tell(sequence, event)

    def _tell(self, sequence: Sequence, event: Event) -> None:
        """Hand an event to its sink; one that raises ends its own sequence and no other."""
        try:
            sequence.sink(event)
        except Exception:
            logger.exception("sequence %d ends: its sink raised", sequence.number)
            if event.finish_reason is None:
                self.scheduler.remove(sequence)
                with suppress(Exception):  # it may take the end, having refused a token
                    sequence.sink(Event(finish_reason=FinishReason.ERROR, error="its sink raised"))

    def _end_all(self, event: Event) -> None:
        """Tell everyone, so that nobody waits for a thread that is gone."""
        with self._wakeup:
            self._stopping = True
            unseen = list(self._inbox)
            self._inbox.clear()
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            try:
                self.scheduler.remove(sequence)
            except Exception:
                # A bug, maybe the one that ends the engine; others are told all the same.
                logger.exception("a sequence's pages could not be taken back")
            self._tell(sequence, event)
        for sequence in unseen:
            self._tell(sequence, event)


def _pages_that_fit(network: GPTJNetwork, config: EngineConfig) -> int:
    """Pages besides the null page that all devices have room for and the batch can use."""
    token_bytes = 2 * network.config.n_embd * network.dtype.itemsize
    layers = network.placement.layers
    pages = config.max_batch_size * -(-network.config.n_positions // config.page_size)
    for device in set(layers):
        page_bytes = layers.count(device) * config.page_size * token_bytes
        fitting = config.kv_cache_bytes[device] // page_bytes - (NULL_PAGE + 1)
        if fitting < 1:
            raise ValueError(
                f"a KV cache of {config.kv_cache_bytes[device]} bytes on {device} is too small; "
                f"the least is {2 * page_bytes}"
            )
        pages = min(pages, fitting)
    return pages


def _eos_token_ids(configured: int | list[int] | None) -> tuple[int, ...]:
    if configured is None:
        return ()
    return tuple(configured) if isinstance(configured, list) else (configured,)
