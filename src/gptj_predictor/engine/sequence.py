"""One sequence while it waits and runs, and what a step does with it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gptj_predictor.engine.page_allocator import PageTable
from gptj_predictor.engine.prefix_cache import ROOT, PrefixCursor
from gptj_predictor.sampling.params import SamplingParams

SequenceStatus = enum.Enum("SequenceStatus", ["WAITING", "RUNNING", "FINISHED"])


@dataclass(eq=False)
class Sequence:
    """A prompt and what was generated after it."""

    token_ids: list[int]  # prompt and output, as far as they are known on the host
    params: SamplingParams
    number: int = 0  # its place in the order of arrival, from 1
    status: SequenceStatus = SequenceStatus.WAITING
    batch_index: int = -1  # its place in the running batch, while it runs
    page_table: PageTable | None = None  # its pages of the KV cache, while it runs
    prefix: PrefixCursor = ROOT  # how far its pages are in the prefix cache
    num_cached_tokens: int = 0  # with keys and values in the KV cache once launched steps have run
    num_in_flight: int = 0  # tokens that were launched and are not known on the host yet
    epoch: int = 0  # goes up when it leaves the batch; results of earlier steps are dropped

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
        return self.num_tokens >= self.params.max_length


@dataclass(frozen=True)
class ScheduledChunk:
    """What one step does for one sequence."""

    sequence: Sequence
    batch_index: int
    page_table: PageTable
    start: int  # position of its first token
    num_tokens: int
    samples: bool  # its tokens are the last pending ones, so the step gives the next token
    epoch: int  # the sequence's when this was scheduled

    @property
    def end(self) -> int:
        """Position after the last of its tokens."""
        return self.start + self.num_tokens

    @property
    def is_current(self) -> bool:
        """Whether the sequence is still in the batch that this was scheduled for."""
        return self.epoch == self.sequence.epoch
