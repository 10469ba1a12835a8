"""One sequence while it waits and runs, and what a step does with it."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gptj_predictor.engine.page_allocator import PageTable
from gptj_predictor.engine.prefix_cache import ROOT, PrefixCursor
from gptj_predictor.engine.request import Timeline, TokenLogprobs
from gptj_predictor.sampling.params import SamplingParams

SequenceStatus = enum.Enum("SequenceStatus", ["WAITING", "RUNNING", "FINISHED"])


@dataclass(eq=False)
class Sequence:
    """A prompt and what was generated after it."""

    token_ids: list[int]  # prompt and output, as far as they are known on the host
    params: SamplingParams
    caller: str = ""  # whose turn it takes in the queue
    submitted: float = field(default_factory=time.monotonic)
    number: int = 0  # its place in the order of first admission, from 1; 0 before it
    status: SequenceStatus = SequenceStatus.WAITING
    batch_index: int = -1  # its place in the running batch, while it runs
    page_table: PageTable | None = None  # its pages of the KV cache, while it runs
    prefix: PrefixCursor = ROOT  # how far its pages are in the prefix cache
    num_cached_tokens: int = 0  # with keys and values in the KV cache once launched steps have run
    num_in_flight: int = 0  # tokens that were launched and are not known on the host yet
    epoch: int = 0  # goes up when it leaves the batch; results of earlier steps are dropped
    runs_alone: bool = False  # memory ran out; its prompt is tried again with no other beside
    num_prompt_tokens: int = field(init=False)
    is_prompt_only: bool = field(init=False)  # it ends when its prompt is computed
    #: The prompt's log-probabilities as far as they are known, from the second token on; ``None``
    #: if nobody asks, or once they are delivered.
    prompt_logprobs: list[TokenLogprobs] | None = field(init=False)
    num_prefix_hit_tokens: int = 0  # of the prompt, when it was first admitted
    scheduled: float | None = None  # when; see Timeline
    first_token: float | None = None
    last_token: float | None = None

    def __post_init__(self) -> None:
        """Note the prompt's length, and what is to be done with it."""
        self.num_prompt_tokens = len(self.token_ids)
        self.is_prompt_only = self.num_prompt_tokens >= self.params.max_length
        self.prompt_logprobs = None if self.params.prompt_logprobs is None else []

    @property
    def num_tokens(self) -> int:
        """Its tokens, those in flight included."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_pending_tokens(self) -> int:
        """Tokens whose keys and values are still to be computed; 1 while it decodes."""
        return self.num_tokens - self.num_cached_tokens

    @property
    def is_exhausted(self) -> bool:
        """Whether its last token is already in flight."""
        return self.num_tokens >= self.params.max_length and not self.is_prompt_only

    def take_prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """The prompt's log-probabilities, to be delivered; the next time ``None``."""
        if self.prompt_logprobs is None:
            return None
        taken, self.prompt_logprobs = tuple(self.prompt_logprobs), None
        return taken

    @property
    def timeline(self) -> Timeline:
        """How far it got when."""
        return Timeline(
            submitted=self.submitted,
            scheduled=self.scheduled,
            first_token=self.first_token,
            last_token=self.last_token,
            num_prompt_tokens=self.num_prompt_tokens,
            num_generated_tokens=len(self.token_ids) - self.num_prompt_tokens,
            num_cached_tokens=self.num_prefix_hit_tokens,
        )


@dataclass(frozen=True)
class ScheduledChunk:
    """What one step does for one sequence."""

    sequence: Sequence
    batch_index: int
    page_table: PageTable
    start: int  # position of its first token
    num_tokens: int
    samples: bool  # its tokens are the last pending ones, so the step gives the next token
    completes: bool  # they are the last ones of a sequence that is its prompt only
    epoch: int  # the sequence's when this was scheduled

    @property
    def end(self) -> int:
        """Position after the last of its tokens."""
        return self.start + self.num_tokens

    @property
    def num_scored(self) -> int:
        """How many of its tokens, the first ones, are to give the next one's log-probability."""
        if self.sequence.prompt_logprobs is None:
            return 0
        return max(0, min(self.end, self.sequence.num_prompt_tokens - 1) - self.start)

    @property
    def is_current(self) -> bool:
        """Whether the sequence is still in the batch that this was scheduled for."""
        return self.epoch == self.sequence.epoch


@dataclass(frozen=True)
class StepResults:
    """What a step gave to the sequences that it computed.

    Attributes:
        tokens: The chunks that sample and their new tokens, -1 where no logit was finite.
        completed: The chunks that complete a sequence which is its prompt only.
        logprobs: Of new tokens, for the sequences that ask.
        prompt_logprobs: Of the tokens after those of a chunk, for the chunks that are scored.
    """

    tokens: Iterable[tuple[ScheduledChunk, int]]
    completed: Iterable[ScheduledChunk] = ()
    logprobs: Mapping[Sequence, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: Iterable[tuple[ScheduledChunk, list[TokenLogprobs]]] = ()
