"""What is asked of everyone who is measured, and the times that come back."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

Prompts = list[list[int]]
#: Rows of a table, or measurements; each maps names to values.
Samples = list[dict[str, Any]]


@dataclass(frozen=True)
class Load:
    """Sequences of one length that start together.

    Attributes:
        batch: Sequences.
        prompt: Tokens of each prompt.
        new: New tokens of each sequence.
    """

    batch: int
    prompt: int
    new: int


@dataclass(frozen=True)
class Timing:
    """The times of one measurement, in seconds from its start.

    Attributes:
        total: When every sequence had its last token.
        tokens: The first sequence's new tokens.
        first: When every sequence had its first token.
        slowest: The longest pause between two tokens; ``None`` if there is only one token.
    """

    total: float
    tokens: list[int]
    first: float
    slowest: float | None

    @property
    def step(self) -> float | None:
        """Seconds of a decode step."""
        return (self.total - self.first) / (len(self.tokens) - 1) if self.tokens[1:] else None

    @property
    def cost(self) -> float:
        """Seconds to compare by: of a step, or of the first token if there is no step."""
        return self.step or self.first

    @classmethod
    def of(cls, tokens: list[int], started: float, times: list[float]) -> Timing:
        """From the clock's times at which each new token was there in all sequences."""
        ended = time.perf_counter()
        pauses = [after - before for before, after in itertools.pairwise(times)]
        return cls(ended - started, tokens, times[0] - started, max(pauses, default=None))
