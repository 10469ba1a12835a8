"""What goes into the engine and what comes out of it: plain values, no torch."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass


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
