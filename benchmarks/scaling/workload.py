"""When requests arrive, and how long they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Traffic:
    """Requests that arrive at random: a Poisson process whose rate may change between two values.

    Attributes:
        name: For the reader.
        rate: Requests a second.
        burst_rate: Requests a second within a burst; None: there are no bursts, and the process is
            Poisson.
        quiet_seconds: Mean time between two bursts, exponential.
        burst_seconds: Mean time of a burst, exponential.
    """

    name: str
    rate: float
    burst_rate: float | None = None
    quiet_seconds: float = 0.0
    burst_seconds: float = 0.0

    @property
    def mean_rate(self) -> float:
        """Requests a second over a long time."""
        if self.burst_rate is None:
            return self.rate
        both = self.rate * self.quiet_seconds + self.burst_rate * self.burst_seconds
        return both / (self.quiet_seconds + self.burst_seconds)

    def arrivals(self, seconds: float, random: np.random.Generator) -> Floats:
        """The times of all arrivals before ``seconds``, in order.

        Within a period of constant rate their number is Poisson and their places are uniform.
        """
        parts: list[Floats] = []
        start, bursting = 0.0, False
        while start < seconds:
            if self.burst_rate is None:
                length, rate = seconds, self.rate
            elif bursting:
                length, rate = random.exponential(self.burst_seconds), self.burst_rate
            else:
                length, rate = random.exponential(self.quiet_seconds), self.rate
            end = min(start + length, seconds)
            number = random.poisson(rate * (end - start))
            parts.append(np.sort(random.uniform(start, end, number)))
            start, bursting = start + length, not bursting
        return np.concatenate(parts)


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and texts.

    Attributes:
        prompt_tokens: Of every prompt.
        new_tokens: Mean of a text; geometric, at least 1.
        max_new_tokens: Texts are cut here.
        constant: Every text has ``new_tokens``.
    """

    prompt_tokens: int = 256
    new_tokens: int = 256
    max_new_tokens: int = 1792
    constant: bool = False

    def draw(self, number: int, random: np.random.Generator) -> Ints:
        """New tokens of so many requests."""
        if self.constant:
            return np.full(number, self.new_tokens, dtype=np.int64)
        drawn = random.geometric(1 / self.new_tokens, number)
        return np.minimum(drawn, self.max_new_tokens).astype(np.int64)
