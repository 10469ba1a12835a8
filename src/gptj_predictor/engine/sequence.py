"""One sequence while it waits and runs, and what a step does with it."""

from __future__ import annotations

from dataclasses import dataclass

from gptj_predictor.engine.pages import PageTable
from gptj_predictor.engine.request import EventSink, SamplingParams


@dataclass(eq=False)
class Sequence:
    """A prompt and what was generated after it.

    Attributes:
        token_ids: Prompt and output as far as it is known here.
        params: How its tokens are chosen.
        sink: Who is told of its tokens.
        number: Its place in the order of arrival.
        slot: Its row in the runner's table of tokens while it runs.
        table: Its cache pages while it runs.
        cached: How many of its tokens have keys and values in the cache, or will by the end of the
            steps that were launched.
        joined: Whether a row was planned since it joined the batch.
        in_flight: How many of its tokens were launched and are not known here yet.
        run: Goes up when it leaves the batch: what a step launched before then brings is dropped.
        cancelled: Set from any thread; the engine drops the sequence before its next step.
    """

    token_ids: list[int]
    params: SamplingParams
    sink: EventSink
    number: int = 0
    slot: int | None = None
    table: PageTable | None = None
    cached: int = 0
    joined: bool = False
    in_flight: int = 0
    run: int = 0
    cancelled: bool = False

    @property
    def length(self) -> int:
        """Its tokens, those in flight included."""
        return len(self.token_ids) + self.in_flight

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are still to be computed; 1 while it decodes."""
        return self.length - self.cached

    @property
    def exhausted(self) -> bool:
        """Whether its last token is already in flight."""
        return self.length >= self.params.max_length


@dataclass(frozen=True)
class Row:
    """What one step does for one sequence.

    Attributes:
        sequence: Whose tokens.
        start: The place of the first of them.
        count: How many.
        samples: Whether they are the last pending ones, so that the next token comes out.
        first: Whether this is the sequence's first row since it joined the batch.
        run: The sequence's ``run`` when this was planned.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    first: bool
    run: int

    @property
    def current(self) -> bool:
        """Whether the sequence is still in the batch for which this was planned."""
        return self.run == self.sequence.run
