"""What goes into the engine and what comes out of it: plain values, no torch."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """How one sequence's tokens are chosen; lengths are totals, prompt included."""

    min_length: int  # end of text is not chosen before the sequence has this many tokens
    max_length: int  # the sequence ends when it has this many tokens
    temperature: float  # divides the logits; 0 takes the most likely token
    top_k: int  # keep the k most likely tokens; 0 keeps all
    top_p: float  # keep the fewest most likely tokens whose probabilities reach p
    repetition_penalty: float  # Keskar et al., CTRL (2019), section 4.1, over prompt and output
    seed: int  # 64 bits; with the token's position it decides every random choice

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
    """One step's news of one sequence."""

    token_id: int | None = None  # the new token; none if the sequence ended without one
    finish_reason: FinishReason | None = None  # set on the last event, and only there
    error: str | None = None  # what went wrong, for a log; only with FinishReason.ERROR


#: Called from the engine's thread, once per event, in order; it must not block. If it raises, its
#: sequence ends, with ``FinishReason.ERROR`` if that can still be said.
EventSink = Callable[[Event], None]


class RequestRefusedError(ValueError):
    """The request can never run here; the text says what would."""


class EngineDeadError(RuntimeError):
    """The engine has stopped and will not answer."""
