"""What the engine counts, and how its histograms are read."""

from __future__ import annotations

import math

import pytest

from gptj_predictor.engine.request import Event, Failure, FinishReason
from gptj_predictor.engine.sequence import Sequence
from gptj_predictor.engine.stats import Histogram, Meter, token_bounds
from tests.support.engines import GREEDY


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram([1, 2, 5])
    for value in (0.5, 1, 1.5, 5, 9):
        histogram.observe(value)
    histogram.observe(2, times=3)
    counts = histogram.read()
    assert counts.counts == (2, 4, 1, 1)
    assert counts.total == 23
    assert counts.cumulative() == [(1, 2), (2, 6), (5, 7), (math.inf, 8)]
    assert counts.cumulative([2]) == [(2, 6), (math.inf, 8)]
    with pytest.raises(ValueError, match="not all of"):
        counts.cumulative([1, 3])


def test_what_is_read_stays_as_it_was() -> None:
    histogram = Histogram([1])
    before = histogram.read()
    histogram.observe(1)
    assert before.counts == (0, 0)


@pytest.mark.parametrize(
    ("context", "bounds"),
    [
        (1, (1,)),
        (5, (1, 2, 5)),
        (128, (1, 2, 5, 10, 20, 50, 100)),
        (2048, (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)),
    ],
)
def test_token_bounds_end_at_the_context(context: int, bounds: tuple[int, ...]) -> None:
    assert token_bounds(context) == bounds


def test_a_sequence_from_the_queue_to_its_end() -> None:
    """Powers of two, so that sums of seconds are exact."""
    meter = Meter(128)
    one, other = (Sequence([1, 2, 3], GREEDY, submitted=0.0) for _ in range(2))
    meter.scheduled(one, 1.0)
    meter.scheduled(other, 2.0)
    meter.tokens([one], 4.0)
    meter.tokens([one, other], 8.0)
    meter.tokens([one, other], 8.5)
    one.token_ids += [4, 5, 6]
    meter.ended(one, Event(finish_reason=FinishReason.LENGTH), 9.0)
    meter.ended(
        other, Event(finish_reason=FinishReason.ERROR, failure=Failure.STEP, error="why"), 9.0
    )
    read = meter.histograms()
    sums = {name: (sum(counts.counts), counts.total) for name, counts in read.items()}
    assert sums == {
        "step_seconds": (0, 0),
        "batch_size": (0, 0),
        "queue_seconds": (2, 3.0),
        "prefill_seconds": (2, 9.0),
        "first_token_seconds": (2, 12.0),
        "inter_token_seconds": (3, 5.0),
        "decode_seconds": (1, 4.5),
        "token_seconds": (1, 2.25),
        "end_to_end_seconds": (1, 9.0),
        "prompt_tokens": (1, 3),
        "generated_tokens": (1, 3),
    }
    assert meter.num_prompt_tokens == 6
    assert (meter.finished[FinishReason.LENGTH], meter.finished[FinishReason.ERROR]) == (1, 1)
    assert meter.failures[Failure.STEP] == 1
