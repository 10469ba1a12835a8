"""The engine without a thread: sequences in, steps, events out."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gptj_predictor.common.dtypes import dtype_name
from gptj_predictor.engine.faults import DeviceFaultError, Fault, classify
from gptj_predictor.engine.graphs import Capture
from gptj_predictor.engine.product_timing import choose_products
from gptj_predictor.engine.rehearsal import largest_step, warm_up
from gptj_predictor.engine.request import Event
from gptj_predictor.engine.runner import LaunchedStep, ModelRunner
from gptj_predictor.engine.scheduler import Scheduler, SequenceEvent
from gptj_predictor.engine.sequence import ScheduledChunk, Sequence, SequenceStatus, StepResults
from gptj_predictor.engine.stats import EngineStats, Meter
from gptj_predictor.model.kv_cache import PagedKVCache
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.model.product_choice import CallTimer, ProductChoice
from gptj_predictor.sampling.params import SamplingParams
from gptj_predictor.sampling.sampler import Sampler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of an engine."""

    max_batch_size: int  # sequences that run together
    max_prefill_tokens: int  # prompt tokens that one step takes in beside those that decode
    page_size: int  # tokens per page of the KV cache
    num_pages: int  # pages that sequences can use
    enable_prefix_caching: bool = True  # sequences with the same leading tokens share pages
    #: Whether a step is launched before the last one's tokens are read; on GPUs if ``None``. On a
    #: CPU, where a launch is the whole computation, that would only make every token late.
    overlap: bool | None = None
    #: Whether prompts for nobody are run before the first real one; on GPUs if ``None``.
    warm_up: bool | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is; it never changes."""

    config: EngineConfig
    max_context: int  # tokens of the longest sequence
    kv_cache_tokens: int  # that fit the KV cache
    kv_bytes_per_token: int  # keys and values of all layers
    step_weight_bytes: int  # read by a decode step: all weights but an embedding of its own
    devices: tuple[torch.device, ...]  # that hold the network, in the order of use
    attention: dict[torch.device, str]  # each device's attention by name
    captures: bool  # whether decoding is replayed from graphs
    precision: str  # of weights and KV cache: torch's name of the dtype
    quantization: str  # of the weights of products: none or int8
    products: tuple[ProductChoice, ...]  # how they are computed, where there was a choice


class EngineCore:
    """Runs sequences until they end; they join and leave between steps.

    One thread at a time may call it; only :meth:`check`, :meth:`info` and :meth:`stats` may be
    called beside.
    """

    def __init__(
        self,
        network: GPTJNetwork,
        config: EngineConfig,
        capture: Capture | None = None,
        timer: CallTimer | None = None,
    ) -> None:
        """Choose how the network's products are computed, and allocate the KV cache.

        Args:
            network: What runs. The first engine on it has its products chosen.
            config: Sizes.
            capture: Makes the graphs that decoding is replayed from, if it is.
            timer: Measures for the choice of products. By default a GPU's clock; where there is no
                GPU, nothing is chosen.
        """
        choose_products(network, timer, graphs=capture is not None)
        model, value_bytes = network.config, network.dtype.itemsize
        cache = PagedKVCache(
            devices=list(network.placement.layers),
            pages=config.num_pages + 1,
            page_size=config.page_size,
            heads=model.n_head,
            head_size=network.head_size,
            dtype=network.dtype,
        )
        sampler = Sampler(model.eos_token_ids)
        self._runner = ModelRunner(network, cache, sampler, config.max_batch_size)
        self._scheduler = Scheduler(
            num_pages=config.num_pages,
            page_size=config.page_size,
            max_batch_size=config.max_batch_size,
            max_prefill_tokens=config.max_prefill_tokens,
            max_context=model.n_positions,
            eos_token_ids=model.eos_token_ids,
            enable_prefix_caching=config.enable_prefix_caching,
        )
        self._capture = capture
        on_gpu = self._runner.device.type == "cuda"
        self._on_cuda = any(device.type == "cuda" for device in network.placement.devices)
        self._overlap = on_gpu if config.overlap is None else config.overlap
        self._warms_up = on_gpu if config.warm_up is None else config.warm_up
        self._launched: LaunchedStep | None = None
        self._num_steps = 0
        self._meter = Meter(model.n_positions)
        self._step_started: float | None = None
        unread = 0 if model.tie_word_embeddings else model.vocab_size * model.n_embd * value_bytes
        self._info = EngineInfo(
            config=config,
            max_context=model.n_positions,
            kv_cache_tokens=config.num_pages * config.page_size,
            kv_bytes_per_token=2 * model.n_layer * model.n_embd * value_bytes,
            step_weight_bytes=network.weight_bytes - unread,
            devices=network.placement.devices,
            attention={device: a.name for device, a in network.attentions.items()},
            captures=capture is not None,
            precision=dtype_name(network.dtype),
            quantization=network.quantization,
            products=network.product_choices or (),
        )

    def info(self) -> EngineInfo:
        """What this engine is."""
        return self._info

    def stats(self) -> EngineStats:
        """Its state now. Beside a step, one figure may be a step older than another."""
        scheduler, meter = self._scheduler, self._meter
        return EngineStats(
            num_waiting=len(scheduler.waiting),
            num_running=len(scheduler.running),
            used_pages=scheduler.allocator.num_used,
            free_pages=scheduler.allocator.num_free,
            num_steps=self._num_steps,
            num_prompt_tokens=meter.num_prompt_tokens,
            num_generated_tokens=scheduler.num_generated_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_prefix_query_tokens=scheduler.num_prefix_query_tokens,
            num_prefix_hit_tokens=scheduler.num_prefix_hit_tokens,
            finished=dict(meter.finished),
            failures=dict(meter.failures),
            **meter.histograms(),
        )

    @property
    def step_seconds(self) -> float:
        """How long the current step has been running; 0 between steps."""
        started = self._step_started
        return 0.0 if started is None else time.monotonic() - started

    def prepare(self) -> None:
        """Get ready to step in the calling thread; the first time, capture the graphs."""
        self._use_device()
        if self._capture is not None:
            self._runner.capture_graphs(self._capture)
            self._capture = None

    def warm_up(self) -> None:
        """Run prompts for nobody, where that saves the first real ones time. See ``rehearsal``.

        Raises:
            RuntimeError: the device could not compute them.
        """
        self._use_device()
        if self._warms_up:
            config = self._info.config
            warm_up(
                self._runner,
                max_prefill_tokens=config.max_prefill_tokens,
                page_size=config.page_size,
                max_context=self._info.max_context,
            )
            self._warms_up = False

    def rehearse(self) -> None:
        """Capture the graphs and run a step that takes as much memory as any.

        Raises:
            RuntimeError: the device could not (out of memory included).
        """
        self.prepare()
        config = self._info.config
        self._runner.launch(
            largest_step(
                max_batch_size=config.max_batch_size,
                max_prefill_tokens=config.max_prefill_tokens,
                page_size=config.page_size,
                max_context=self._info.max_context,
            )
        ).wait()

    def _use_device(self) -> None:
        if self._runner.device.type == "cuda":  # graphs and events want the thread's own device
            torch.cuda.set_device(self._runner.device)

    def check(self, prompt_ids: Seq[int], params: SamplingParams) -> None:
        """Refuse what could never run.

        Raises:
            ValueError: the prompt is empty, or longer than ``max_length``, or that is beyond the
                context.
            RequestRefusedError: the sequence can never fit the KV cache.
        """
        if not 0 < len(prompt_ids) <= params.max_length <= self._info.max_context:
            raise ValueError(
                f"a prompt of {len(prompt_ids)} tokens with max_length {params.max_length} in a "
                f"context of {self._info.max_context}"
            )
        self._scheduler.check_fits(params.max_length)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that passed :meth:`check`."""
        self._scheduler.add(sequence)

    def end(self, sequence: Sequence, event: Event) -> bool:
        """Take a sequence out and free its pages; whether it had not ended before."""
        if sequence.status is SequenceStatus.FINISHED:
            return False
        self._scheduler.remove(sequence)
        self._meter.ended(sequence, event, time.monotonic())
        return True

    @property
    def has_work(self) -> bool:
        """Whether there is a sequence to run."""
        return bool(self._scheduler.running or self._scheduler.waiting)

    def step(self) -> list[SequenceEvent]:
        """Schedule and launch a step, then commit its tokens, or with overlap the last one's.

        A step that fails ends its own sequences and no others; one that memory does not suffice
        for is undone and split (:meth:`Scheduler.shrink`).

        Returns:
            What happened, in order; at most one event per sequence beside ``is_scheduled``.

        Raises:
            DeviceFaultError: no later step can run.
        """
        events: list[SequenceEvent] = []
        self._step_started = started = time.monotonic()
        chunks, launched = self._scheduler.schedule(), None
        for chunk in chunks:
            if chunk.sequence.scheduled is None:
                self._meter.scheduled(chunk.sequence, started)
                events.append((chunk.sequence, Event(is_scheduled=True)))
        if chunks:
            self._num_steps += 1
            self._meter.batch_size.observe(len(chunks))
            with self._surviving(chunks, events):
                launched = self._runner.launch(chunks)
        if self._overlap:
            launched, self._launched = self._launched, launched
        if launched is not None:
            results: StepResults | None = None
            with self._surviving(launched.chunks, events):
                results = launched.wait()
            if results is not None:
                events += self._scheduler.commit(results)
        if not self.has_work:
            self._launched = None
        self._measure(events, started)
        self._step_started = None
        return events

    def _measure(self, events: list[SequenceEvent], started: float) -> None:
        now = time.monotonic()
        self._meter.step_seconds.observe(now - started)
        self._meter.tokens((s for s, event in events if event.token_id is not None), now)
        for sequence, event in events:
            if event.finish_reason is not None:
                self._meter.ended(sequence, event, now)

    def check_invariants(self) -> None:
        """See :meth:`Scheduler.check_invariants`."""
        self._scheduler.check_invariants()

    @contextmanager
    def _surviving(
        self, chunks: list[ScheduledChunk], events: list[SequenceEvent]
    ) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            fault = classify(error, on_cuda=self._on_cuda)
            if fault is Fault.DEVICE:
                raise DeviceFaultError(str(error).partition("\n")[0]) from error
            logger.error("a step of %d sequences failed", len(chunks), exc_info=error)
            if fault is Fault.OUT_OF_MEMORY:
                # The step's tensors are in the traceback's frames.
                traceback.clear_frames(error.__traceback__)
                if self._runner.device.type == "cuda":
                    torch.cuda.empty_cache()
            scheduler = self._scheduler
            react = scheduler.shrink if fault is Fault.OUT_OF_MEMORY else scheduler.fail
            events += react(chunks, str(error))
