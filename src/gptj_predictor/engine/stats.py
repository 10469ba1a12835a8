"""What an engine counts: plain numbers, for whoever reports them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from gptj_predictor.engine.request import Event, Failure, FinishReason
from gptj_predictor.engine.sequence import Sequence

#: Upper bounds of the histograms' buckets, in seconds. They include those of vLLM's metrics of the
#: same meaning, which can so be made of them, and finer ones for small models.
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def token_bounds(max_context: int) -> tuple[int, ...]:
    """Bounds for counts of tokens, as vLLM's: 1, 2, 5, 10, 20, ... up to ``max_context``."""
    steps = (digit * 10**power for power in range(len(str(max_context))) for digit in (1, 2, 5))
    return tuple(step for step in steps if step <= max_context)


@dataclass(frozen=True)
class HistogramCounts:
    """A histogram as it stood: observations per bucket, those above the last bound at the end."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float  # sum of all observations

    def cumulative(self, bounds: Iterable[float] | None = None) -> list[tuple[float, int]]:
        """Bounds, infinity the last of them, and how many observations are not above each.

        Args:
            bounds: Some of its own bounds; all of them by default.

        Raises:
            ValueError: it has no such bound.
        """
        sums = dict(zip((*self.bounds, math.inf), accumulate(self.counts), strict=True))
        if bounds is None:
            return list(sums.items())
        wanted = (*bounds, math.inf)
        if not sums.keys() >= set(wanted):
            raise ValueError(f"not all of {wanted} are among {self.bounds}")
        return [(bound, sums[bound]) for bound in wanted]


class Histogram:
    """Counts observations in buckets. One thread at a time may observe."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = tuple(map(float, bounds))
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value; a bucket's bound belongs to it."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def read(self) -> HistogramCounts:
        """A copy."""
        return HistogramCounts(self._bounds, tuple(self._counts), self._total)


@dataclass(frozen=True)
class EngineStats:
    """An engine's state, and its counters since it was made. Times are in seconds."""

    num_waiting: int  # sequences without a place in the batch
    num_running: int  # sequences in the batch
    used_pages: int  # that sequences hold
    free_pages: int  # that can be handed out, those of the prefix cache included
    num_steps: int
    num_prompt_tokens: int  # of the sequences whose prompt was computed
    num_generated_tokens: int
    num_preemptions: (
        int  # how often a sequence lost its place: to an older one, or as memory ran out
    )
    num_prefix_query_tokens: int  # tokens of the sequences that joined the batch
    num_prefix_hit_tokens: int  # how many of them the prefix cache had
    finished: dict[FinishReason, int]  # sequences by what ended them
    failures: dict[Failure, int]  # those that ended with an error
    step_seconds: HistogramCounts
    batch_size: HistogramCounts  # sequences in a step
    queue_seconds: HistogramCounts  # from submitting a sequence to its first place in the batch
    prefill_seconds: HistogramCounts  # from there to its first token
    first_token_seconds: HistogramCounts  # both together
    inter_token_seconds: HistogramCounts  # between two tokens of a sequence
    # The rest is of sequences that ended, except those cancelled or failed.
    decode_seconds: HistogramCounts  # from the first token to the last
    token_seconds: HistogramCounts  # a sequence's mean between two tokens
    end_to_end_seconds: HistogramCounts  # from submitting to the end
    prompt_tokens: HistogramCounts
    generated_tokens: HistogramCounts


class Meter:
    """Observes sequences as they go through the engine."""

    def __init__(self, max_context: int) -> None:
        """Nothing was observed yet.

        Args:
            max_context: Tokens of the longest sequence.
        """
        self.num_prompt_tokens = 0
        self.finished: Counter[FinishReason] = Counter(dict.fromkeys(FinishReason, 0))
        self.failures: Counter[Failure] = Counter(dict.fromkeys(Failure, 0))
        self.step_seconds = Histogram(TOKEN_SECONDS)
        self.batch_size = Histogram(BATCH_SIZES)
        self.queue_seconds = Histogram(REQUEST_SECONDS)
        self.prefill_seconds = Histogram(REQUEST_SECONDS)
        self.first_token_seconds = Histogram(FIRST_TOKEN_SECONDS)
        self.inter_token_seconds = Histogram(TOKEN_SECONDS)
        self.decode_seconds = Histogram(REQUEST_SECONDS)
        self.token_seconds = Histogram(TOKEN_SECONDS)
        self.end_to_end_seconds = Histogram(REQUEST_SECONDS)
        self.prompt_tokens = Histogram(token_bounds(max_context))
        self.generated_tokens = Histogram(token_bounds(max_context))

    def histograms(self) -> dict[str, HistogramCounts]:
        """Copies of all, by name."""
        return {n: h.read() for n, h in vars(self).items() if isinstance(h, Histogram)}

    def scheduled(self, sequence: Sequence, now: float) -> None:
        """A sequence has got its first place in the batch."""
        sequence.scheduled = now
        self.queue_seconds.observe(now - sequence.submitted)

    def tokens(self, sequences: Iterable[Sequence], now: float) -> None:
        """Sequences have got a token each."""
        gaps: dict[float, int] = {}
        for sequence in sequences:
            if sequence.last_token is None:
                self._first_token(sequence, now)
            else:
                # Most got their last token in the same step, so few values are different.
                gap = now - sequence.last_token
                gaps[gap] = gaps.get(gap, 0) + 1
            sequence.last_token = now
        for gap, times in gaps.items():
            self.inter_token_seconds.observe(gap, times)

    def _first_token(self, sequence: Sequence, now: float) -> None:
        assert sequence.scheduled is not None
        sequence.first_token = now
        self.num_prompt_tokens += sequence.num_prompt_tokens
        self.prefill_seconds.observe(now - sequence.scheduled)
        self.first_token_seconds.observe(now - sequence.submitted)

    def ended(self, sequence: Sequence, event: Event, now: float) -> None:
        """A sequence has got its last event."""
        assert event.finish_reason is not None
        self.finished[event.finish_reason] += 1
        if event.failure is not None:
            self.failures[event.failure] += 1
        if event.finish_reason in (FinishReason.CANCELLED, FinishReason.ERROR):
            return
        at = sequence.timeline
        if sequence.is_prompt_only and event.finish_reason is FinishReason.LENGTH:
            self.num_prompt_tokens += at.num_prompt_tokens
        self.end_to_end_seconds.observe(now - at.submitted)
        self.prompt_tokens.observe(at.num_prompt_tokens)
        self.generated_tokens.observe(at.num_generated_tokens)
        if at.first_token is not None and at.last_token is not None:
            self.decode_seconds.observe(at.last_token - at.first_token)
            if at.num_generated_tokens > 1:
                seconds = (at.last_token - at.first_token) / (at.num_generated_tokens - 1)
                self.token_seconds.observe(seconds)
