"""The engine: a thread around :class:`EngineCore`, with a mailbox in front and sinks behind."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from gptj_predictor.common.threads import alone
from gptj_predictor.engine.core import EngineConfig, EngineCore, EngineInfo
from gptj_predictor.engine.faults import DeviceFaultError
from gptj_predictor.engine.graphs import Capture
from gptj_predictor.engine.request import (
    EngineDeadError,
    Event,
    EventSink,
    Failure,
    FinishReason,
    Timeline,
)
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.engine.stats import EngineStats
from gptj_predictor.model.network import GPTJNetwork
from gptj_predictor.sampling.params import SamplingParams

logger = logging.getLogger(__name__)


class Handle:
    """A submitted sequence, for whoever submitted it."""

    def __init__(self, sequence: Sequence, end: Callable[[FinishReason], None]) -> None:
        self._sequence = sequence
        self._end = end

    def end(self, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End the sequence before its next step; its last event repeats the reason.

        Callable from any thread, more than once, and after the end.
        """
        self._end(reason)

    @property
    def timeline(self) -> Timeline:
        """How far it has got; complete after the last event."""
        return self._sequence.timeline


class Engine:
    """Runs submitted sequences in a thread of its own and tells their sinks.

    :meth:`submit`, ``Handle.end``, :meth:`info` and :meth:`stats` may be called from any thread.
    They and :meth:`stop` put letters into the mailbox: functions that the engine's thread calls
    between two steps.
    """

    def __init__(
        self, network: GPTJNetwork, config: EngineConfig, capture: Capture | None = None
    ) -> None:
        """See :class:`EngineCore`; :meth:`start` starts the thread."""
        self._core = alone(lambda: EngineCore(network, config, capture))
        self._sinks: dict[Sequence, EventSink] = {}  # the engine's thread alone uses it
        self._mailbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closing = threading.Lock()  # no letter comes after the thread has read the last one
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._cause: str | None = None

    def info(self) -> EngineInfo:
        """What this engine is."""
        return self._core.info()

    def stats(self) -> EngineStats:
        """Its state now. Beside a step, one figure may be a step older than another."""
        return self._core.stats()

    def start(self) -> None:
        """Start the thread, the first time after capturing the graphs, if there will be any.

        It returns when the thread has warmed up: libraries keep handles for each thread.

        On a CPU, load the network in a thread that ends, and compute in no other meanwhile, see
        :func:`alone`.

        Raises:
            EngineDeadError: the thread could not warm up.
        """
        self._core.prepare()
        self._stopping, self._cause = False, None
        warm = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[warm], name="engine", daemon=True)
        self._thread.start()
        warm.wait()
        if self._cause is not None:
            raise EngineDeadError(f"the engine died while it warmed up: {self._cause}")

    def stop(self, timeout: float | None = None) -> None:
        """End the thread after its current step; sequences that still run are cancelled.

        It may be started again; the prefix cache is kept.

        Args:
            timeout: Seconds to wait for the thread; it may hang.
        """
        self._stopping = True
        self._mailbox.put(lambda: None)  # it may sleep
        if self._thread is not None:
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether submitted sequences will be answered."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    @property
    def cause_of_death(self) -> str | None:
        """What ended the thread, in one line, if :meth:`stop` did not."""
        return self._cause

    @property
    def step_seconds(self) -> float:
        """How long the current step has been running; 0 between steps."""
        return self._core.step_seconds

    def check_invariants(self) -> None:
        """See :meth:`Scheduler.check_invariants`; only while the engine is stopped."""
        self._core.check_invariants()

    def submit(
        self, prompt_ids: list[int], params: SamplingParams, sink: EventSink, caller: str = ""
    ) -> Handle:
        """Queue a prompt.

        Args:
            prompt_ids: At least one token and at most ``params.max_length``. If it is as long as
                that, the sequence ends without a token, once its prompt is computed.
            params: How to choose tokens and when to end.
            sink: Told of every new token and of the end, from the engine's thread.
            caller: Whose turn the prompt takes in the queue.

        Raises:
            RequestRefusedError: the sequence can never fit the KV cache.
            EngineDeadError: the engine does not run.
        """
        self._core.check(prompt_ids, params)
        sequence = Sequence(list(prompt_ids), params, caller)
        with self._closing:
            if not self.alive:
                raise EngineDeadError("the engine is not running")
            self._mailbox.put(partial(self._add, sequence, sink))
        return Handle(sequence, lambda why: self._mailbox.put(partial(self._end, sequence, why)))

    def _run(self, warm: threading.Event) -> None:
        try:
            self._core.warm_up()
            warm.set()
            while not self._stopping:
                self._read_mailbox(wait=not self._core.has_work)
                if self._core.has_work:
                    for sequence, event in self._core.step():
                        self._deliver(sequence, event)
            self._end_all(Event(finish_reason=FinishReason.CANCELLED))
        except BaseException as error:
            is_device = isinstance(error, DeviceFaultError)
            self._cause = str(error) if is_device else repr(error)
            logger.exception("the engine died")
            self._end_all(_failed(Failure.ENGINE, "the engine died"))
            raise
        finally:
            warm.set()

    def _read_mailbox(self, *, wait: bool) -> None:
        """Do what every letter says; with ``wait`` for at least one."""
        with suppress(queue.Empty):
            if wait:
                self._mailbox.get()()
            while True:
                self._mailbox.get_nowait()()

    def _add(self, sequence: Sequence, sink: EventSink) -> None:
        self._sinks[sequence] = sink
        self._core.add(sequence)

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        event = Event(finish_reason=reason)
        if self._core.end(sequence, event):
            self._deliver(sequence, event)

    def _deliver(self, sequence: Sequence, event: Event) -> None:
        """Hand an event to its sink; one that raises ends its own sequence and no other."""
        sink = self._sinks.get(sequence)
        if sink is None:  # it raised a moment ago
            return
        if event.finish_reason is not None:
            del self._sinks[sequence]
        try:
            sink(event)
        except Exception:
            logger.exception("sequence %d ends: its sink raised", sequence.number)
            if event.finish_reason is None:
                del self._sinks[sequence]
                end = _failed(Failure.SINK, "its sink raised")
                self._core.end(sequence, end)
                with suppress(Exception):  # it may take the end, having refused a token
                    sink(end)

    def _end_all(self, event: Event) -> None:
        """Tell everyone, so that nobody waits for a thread that is gone."""
        with self._closing:
            self._stopping = True
        self._read_mailbox(wait=False)
        for sequence in list(self._sinks):
            try:
                self._core.end(sequence, event)
            except Exception:
                # A bug, maybe the one that ends the engine; others are told all the same.
                logger.exception("a sequence's pages could not be taken back")
            self._deliver(sequence, event)


def _failed(failure: Failure, error: str) -> Event:
    return Event(finish_reason=FinishReason.ERROR, failure=failure, error=error)
