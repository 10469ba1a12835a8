"""What goes into the engine and what comes out of it: plain values, no torch."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """How one sequence's tokens are chosen; lengths are totals, prompt included.

    Attributes:
        min_length: End of text is not chosen before the sequence has this many tokens.
        max_length: The sequence ends when it has this many tokens.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the fewest most likely tokens whose probabilities reach p.
        repetition_penalty: Keskar et al., CTRL (2019), section 4.1, over prompt and output.
        seed: Decides, with the token's position, every random choice. Any 64-bit int.
    """

    min_length: int
    max_length: int
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0


class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # end of text, or a stop string found by the caller
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True)
class Event:
    """One step's news of one sequence.

    Attributes:
        token_id: The new token; ``None`` if the sequence ended without one.
        finish_reason: Set on the last event of a sequence, and only there.
        error: What went wrong, for a log; only with ``FinishReason.ERROR``.
    """

    token_id: int | None = None
    finish_reason: FinishReason | None = None
    error: str | None = None


#: Called from the engine's thread, once per event, in order; it must not block. If it raises, its
#: sequence ends, with ``FinishReason.ERROR`` if that can still be said.
EventSink = Callable[[Event], None]


class RequestRefusedError(ValueError):
    """The request can never run here; the text says what would."""


class EngineDeadError(RuntimeError):
    """The engine has stopped and will not answer."""
