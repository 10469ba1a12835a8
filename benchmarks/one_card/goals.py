"""The goals for a GPU, as data, and how they scale to another card."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from one_card.plan import Plan

#: What the goals are for: an NVIDIA H200 copies so many bytes per second, those read and those
#: written both counted, as :func:`gptj_predictor.bench.machine.measure_bandwidth` does.
REFERENCE_CARD, REFERENCE_BANDWIDTH = "H200", 4.3e12


class Scales(StrEnum):
    """What becomes of a goal on a card whose memory is half as fast."""

    WITH = "with the bandwidth"  # half as much
    AGAINST = "against the bandwidth"  # twice as long
    NOT = "not"


@dataclass(frozen=True)
class Goal:
    """What a figure is to be.

    Attributes:
        name: What is measured, as in the results.
        value: On the reference card.
        unit: Of ``value``.
        scales: With the bandwidth of the card.
        at_most: Whether the figure is to be no more than ``value``, else no less.
    """

    name: str
    value: float
    unit: str
    scales: Scales
    at_most: bool = False

    def on(self, bandwidth: float) -> float:
        """The goal for a card that copies so many bytes per second."""
        ratio = bandwidth / REFERENCE_BANDWIDTH
        factors = {Scales.WITH: ratio, Scales.AGAINST: 1 / ratio, Scales.NOT: 1.0}
        return self.value * factors[self.scales]

    def is_met(self, figure: float, bandwidth: float) -> bool:
        """Whether a figure of such a card is good enough."""
        wanted = self.on(bandwidth)
        return figure <= wanted if self.at_most else figure >= wanted


#: Output tokens per second of batches, prompts included in the time.
BATCH_RATES = {64: 10_900, 256: 17_000, 512: 17_000}


def goals_of(plan: Plan) -> tuple[Goal, ...]:
    """Of bf16 weights and cache, greedy; the names have the plan's sizes in them."""
    short, long = (f"first token, {length:,} prompt tokens" for length in plan.first)
    together = f"{plan.at_once} at once against generate one by one"
    prefix = f"shared prefix of {plan.shared[0]:,}, first token sooner"
    return (
        Goal("batch 1, decoding", 330, "tok/s", Scales.WITH),
        Goal("batch 1, slowest step", 300, "tok/s", Scales.WITH),
        Goal("batch 1, share of the measured copy bandwidth", 0.9, "", Scales.NOT),
        *(
            Goal(f"batch {batch}", rate, "tok/s", Scales.WITH)
            for batch, rate in BATCH_RATES.items()
        ),
        Goal(short, 6, "ms", Scales.AGAINST, at_most=True),
        Goal(long, 40, "ms", Scales.AGAINST, at_most=True),
        Goal("batch 1 against generate", 8, "x", Scales.NOT),
        Goal(together, 20, "x", Scales.NOT),
        Goal(prefix, 15, "x", Scales.NOT),
        Goal("prefix caching where nothing is shared, cost", 1, "%", Scales.NOT, at_most=True),
    )
