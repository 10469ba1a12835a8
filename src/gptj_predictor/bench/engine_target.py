"""The engine in this process, as a benchmark's target."""

from __future__ import annotations

import math
import resource
import threading
import time
from collections.abc import Sequence

import torch

from gptj_predictor.bench.errors import BenchmarkError, CellError, DoesNotFitError
from gptj_predictor.bench.results import Round
from gptj_predictor.bench.targets import Sampling, Target
from gptj_predictor.bench.text import Prompt
from gptj_predictor.engine.engine import Engine
from gptj_predictor.engine.request import EngineDeadError, Event, EventSink, RequestRefusedError
from gptj_predictor.sampling.params import SamplingParams

#: How torch says that memory does not suffice.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


class _Collector:
    """Counts the tokens of a round and notes its times, in the engine's thread.

    Attributes:
        tokens: New tokens of all sequences so far.
        first: The clock's time when every sequence had its first token.
        last: The clock's time when every sequence had ended.
        errors: Why sequences ended without a token.
        ended: Set when every sequence has ended.
    """

    def __init__(self, sequences: int) -> None:
        self._waiting = self._running = sequences
        self.tokens = 0
        self.first = self.last = 0.0
        self.errors: list[str] = []
        self.ended = threading.Event()

    def sink(self) -> EventSink:
        """The event sink of one sequence."""
        has_token = False

        def take(event: Event) -> None:
            nonlocal has_token
            if event.token_id is not None:
                self.tokens += 1
                if not has_token:
                    has_token = True
                    self._waiting -= 1
                    if not self._waiting:
                        self.first = time.perf_counter()
            if event.finish_reason is None:
                return
            if event.token_id is None:
                self.errors.append(event.error or event.finish_reason)
            self._running -= 1
            if not self._running:
                self.last = time.perf_counter()
                self.ended.set()

        return take


class EngineTarget(Target):
    """The engine in this process."""

    def __init__(self, engine: Engine, sampling: Sampling) -> None:
        self._engine = engine
        self._sampling = sampling
        self._info = engine.info()
        self._gpus = [device for device in self._info.devices if device.type == "cuda"]

    def limit_bytes(self, batch: int, tokens: int, new_tokens: int) -> int:
        """See :meth:`Target.limit_bytes`.

        Each new token takes one step, which reads the weights once. A step also reads the KV cache:
        the second step the prompt's and the first new token's part, the last step that of all
        tokens but the last. The first step, which takes in the prompt, is counted without it.
        """
        prompt = tokens - new_tokens
        cached = sum(range(prompt + 1, tokens))
        return (
            new_tokens * self._info.step_weight_bytes
            + batch * cached * self._info.kv_bytes_per_token
        )

    def begin_cell(self, batch: int, tokens: int) -> None:
        """See :meth:`Target.begin_cell`; the KV cache must hold all sequences at their ends."""
        page, room = self._info.config.page_size, self._info.kv_cache_tokens
        needed = batch * math.ceil(tokens / page) * page
        if needed > room:
            raise DoesNotFitError(
                f"{batch} x {tokens} tokens need {needed} tokens' room in the KV cache, which has "
                f"{room}"
            )
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def peak_memory(self) -> int:
        """See :meth:`Target.peak_memory`."""
        if self._gpus:
            return sum(torch.cuda.max_memory_allocated(gpu) for gpu in self._gpus)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB

    def run(self, prompts: Sequence[Prompt], new_tokens: int, seed: int) -> Round:
        """See :meth:`Target.run`."""
        collector = _Collector(len(prompts))
        preemptions = self._engine.stats().num_preemptions
        handles = []
        started = time.perf_counter()
        try:
            for prompt in prompts:
                length = len(prompt.ids) + new_tokens
                params = SamplingParams(
                    min_length=length,
                    max_length=length,
                    temperature=self._sampling.temperature,
                    top_k=self._sampling.top_k,
                    top_p=self._sampling.top_p,
                    repetition_penalty=self._sampling.repetition_penalty,
                    seed=seed,
                )
                handles.append(self._engine.submit(prompt.ids, params, collector.sink()))
            collector.ended.wait()
        except RequestRefusedError as error:
            raise DoesNotFitError(str(error)) from error
        except EngineDeadError as error:
            raise BenchmarkError(str(error)) from error
        finally:
            for handle in handles:
                handle.end()
        self._check(collector, len(prompts) * new_tokens)
        if self._engine.stats().num_preemptions != preemptions:
            raise DoesNotFitError("the KV cache was too small to decode all sequences together")
        return Round(
            seconds=collector.last - started,
            first_token_seconds=collector.first - started,
            counted_tokens=collector.tokens,
        )

    def _check(self, collector: _Collector, wanted: int) -> None:
        if collector.errors:
            text = " ".join(collector.errors[0].split())
            if any(words in text for words in OUT_OF_MEMORY):
                raise DoesNotFitError(text)
            if not self._engine.alive:
                raise BenchmarkError(f"the engine died: {text}")
            raise CellError(text)
        if collector.tokens != wanted:
            raise BenchmarkError(f"{collector.tokens} tokens were generated instead of {wanted}")

    def close(self) -> None:
        """Stop the engine."""
        self._engine.stop()
