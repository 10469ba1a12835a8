"""What goes into the engine and what comes out of it: plain values, no torch."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    EOS = "eos_token"
    LENGTH = "length"
    ERROR = "error"
    STOP_SEQUENCE = "stop_sequence"  # one of its stop_token_ids; also as the others below
    # What whoever submitted it may say when it ends the sequence:
    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"
    CANCELLED = "cancelled"


class Failure(enum.StrEnum):
    """What made a sequence end with ``FinishReason.ERROR``."""

    OUT_OF_MEMORY = "out_of_memory"  # twice, the second time alone
    NOT_FINITE = "not_finite"  # its logits
    STEP = "step"  # an exception in a step
    SINK = "sink"  # an exception in whoever is told
    ENGINE = "engine"  # it has died


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely a token was, before any processor; natural logarithms of probabilities."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # the likeliest token ids and theirs, the likeliest first


@dataclass(frozen=True)
class Event:
    """One step's news of one sequence."""

    token_id: int | None = None  # the new token; none if the sequence ended without one
    finish_reason: FinishReason | None = None  # set on the last event, and only there
    failure: Failure | None = None  # only with FinishReason.ERROR
    error: str | None = None  # the same for a log
    is_scheduled: bool = False  # it has its first place in the batch; nothing else is set then
    logprobs: TokenLogprobs | None = None  # the new token's, if the sequence asks
    #: The prompt's from its second token on, if the sequence asks: with its first new token, or
    #: with its end if it is to have none. One that ends before its prompt is computed has none.
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True)
class Timeline:
    """When a sequence got how far, in seconds of ``time.monotonic``; ``None``: not so far."""

    submitted: float
    scheduled: float | None  # its first place in the batch
    first_token: float | None
    last_token: float | None
    num_prompt_tokens: int
    num_generated_tokens: int
    num_cached_tokens: int  # of the prompt, that the prefix cache had when it was first scheduled


#: Called from the engine's thread, once per event, in order; it must not block. If it raises, its
#: sequence ends, with ``FinishReason.ERROR`` if that can still be said.
EventSink = Callable[[Event], None]


class RequestRefusedError(ValueError):
    """The request can never run here; the text says what would."""


class EngineDeadError(RuntimeError):
    """The engine has stopped and will not answer."""
