"""One sequence while it waits and runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from gptj_predictor.engine.request import EventSink, SamplingParams


@dataclass(eq=False)
class Sequence:
    """A prompt and what was generated after it.

    Attributes:
        token_ids: Prompt and output so far.
        params: How its tokens are chosen.
        sink: Who is told of its tokens.
        pages: Its cache pages in order; empty while it waits.
        cached: How many of its tokens have their keys and values in the cache.
        cancelled: Set from any thread; the engine drops the sequence before its next step.
    """

    token_ids: list[int]
    params: SamplingParams
    sink: EventSink
    pages: list[int] = field(default_factory=list)
    cached: int = 0
    cancelled: bool = False

    @property
    def new_token_ids(self) -> list[int]:
        """The tokens that the next step must run: all of a fresh prompt, else the last one."""
        return self.token_ids[self.cached :]
