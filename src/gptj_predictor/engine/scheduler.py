"""Which sequences run in the next step, and with how many of their tokens.

The rule, in the order of admission:

* Every sequence that decodes gets its next token.
* Prompts share the step's prefill budget. Each may take half of what is left while others want some
  too; what nobody takes goes to the oldest. So a long prompt stops neither those that decode nor
  those behind it, and the oldest always gets at least half. Small parts of a prompt are avoided
  (``prefill_share``).
* The next waiting sequence (see ``WaitingQueue``) starts when there is a place in the batch and
  pages for its tokens. None overtakes it, with one exception: while a running sequence computes
  the same prompt, it waits to share the pages, and lets others pass.
* A decoding sequence that needs a page when none is free preempts the youngest, which waits again
  before all that have not run yet, and is recomputed later.
* When memory ran out in a step, its prompts wait again, and each is tried with no other beside.

Nobody starves. The oldest sequence is never preempted for another one, and each one that was
accepted fits the cache alone. So the oldest always ends, and then there is a next oldest.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from itertools import islice
from operator import attrgetter

from gptj_predictor.engine.page_allocator import PageAllocator, PageTable
from gptj_predictor.engine.prefill_share import further_tokens, min_chunk_tokens
from gptj_predictor.engine.prefix_cache import ROOT, PrefixCache
from gptj_predictor.engine.request import (
    Event,
    Failure,
    FinishReason,
    RequestRefusedError,
    TokenLogprobs,
)
from gptj_predictor.engine.sequence import ScheduledChunk, Sequence, SequenceStatus, StepResults
from gptj_predictor.engine.waiting_queue import WaitingQueue

_by_number = attrgetter("number")

#: Waiting sequences that one step looks at, so that a long queue does not make it slow.
MAX_CANDIDATES = 1024

#: A sequence and what happened to it.
SequenceEvent = tuple[Sequence, Event]


class Scheduler:
    """The queue, the running batch in the order of admission, and their pages."""

    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        max_batch_size: int,
        max_prefill_tokens: int,
        max_context: int,
        eos_token_ids: tuple[int, ...] = (),
        enable_prefix_caching: bool = True,
    ) -> None:
        self.allocator = PageAllocator(num_pages, page_size)
        self.prefix_cache = PrefixCache(self.allocator, enabled=enable_prefix_caching)
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self.num_preemptions = self.num_generated_tokens = 0
        #: Tokens of all sequences that joined the batch, and how many the prefix cache had.
        self.num_prefix_query_tokens = self.num_prefix_hit_tokens = 0
        self._max_prefill_tokens = max_prefill_tokens
        self._min_chunk_tokens = min_chunk_tokens(max_prefill_tokens)
        self._max_pages = self.allocator.pages_for(max_context)
        self._eos_token_ids = eos_token_ids
        self._batch_indices = list(reversed(range(max_batch_size)))
        self._num_admitted = 0

    def check_fits(self, max_length: int) -> None:
        """Refuse what could never end, even with the KV cache to itself.

        Raises:
            RequestRefusedError: ``max_length`` tokens need more than all pages.
        """
        if max_length > self.allocator.max_tokens:
            raise RequestRefusedError(
                f"{max_length} tokens (prompt included) do not fit the KV cache; "
                f"at most {self.allocator.max_tokens} do"
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that passed :meth:`check_fits`."""
        self.waiting.add(sequence)

    def schedule(self) -> list[ScheduledChunk]:
        """Choose what the next step computes: one-token chunks first, at most one a sequence."""
        counts: dict[Sequence, int] = {}
        for sequence in list(self.running):
            decodes = sequence.num_pending_tokens == 1 and not sequence.is_exhausted
            running = sequence.status is SequenceStatus.RUNNING  # not preempted a moment ago
            if decodes and running and self._make_room(sequence):
                counts[sequence] = 1
        self._share_prefill(counts)
        in_order = sorted(counts.items(), key=lambda item: item[1] > 1)
        return [self._chunk(sequence, count) for sequence, count in in_order]

    def commit(self, results: StepResults) -> list[SequenceEvent]:
        """Take what a step gave (:meth:`LaunchedStep.wait`), and remove what ends with it.

        Sequences that have left the batch since the step was scheduled are skipped.
        """
        events = []
        for chunk, scored in results.prompt_logprobs:
            if chunk.is_current and not chunk.sequence.add_prompt_logprobs(chunk.start, scored):
                events.append((chunk.sequence, self._end_not_finite(chunk.sequence)))
        events += [
            (chunk.sequence, self._commit_token(chunk.sequence, token_id, results.logprobs))
            for chunk, token_id in results.tokens
            if chunk.is_current
        ]
        events += [
            (chunk.sequence, self._commit_prompt(chunk.sequence))
            for chunk in results.completed
            if chunk.is_current
        ]
        return events

    def fail(self, chunks: Iterable[ScheduledChunk], error: str) -> list[SequenceEvent]:
        """Remove the sequences of a failed step; what it wrote to the cache is not to be shared."""
        self.prefix_cache.clear()
        failed = [chunk.sequence for chunk in chunks if chunk.is_current]
        return [(sequence, self._end(sequence, Failure.STEP, error)) for sequence in failed]

    def shrink(self, chunks: Iterable[ScheduledChunk], error: str) -> list[SequenceEvent]:
        """Undo a step that memory did not suffice for, so that smaller ones come.

        Its prompts wait again, to be tried alone; if it had none, the younger half of those that
        decode does. What runs out of memory alone, or a second time, ends.
        """
        self.prefix_cache.clear()
        current = [chunk for chunk in chunks if chunk.is_current]
        for chunk in current:
            chunk.sequence.num_cached_tokens -= chunk.num_tokens
            chunk.sequence.num_in_flight -= chunk.samples
        too_many = [chunk.sequence for chunk in current if chunk.num_tokens > 1]
        if not too_many:
            decoding = sorted((chunk.sequence for chunk in current), key=_by_number)
            too_many = decoding[len(decoding) // 2 :]
        events = []
        for sequence in too_many:
            if sequence.runs_alone or len(current) == 1:
                event = self._end(sequence, Failure.OUT_OF_MEMORY, error)
                events.append((sequence, event))
            else:
                sequence.runs_alone = True
                self._preempt(sequence)
        return events

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and its pages back."""
        if sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        else:
            self._leave_batch(sequence)
        sequence.status = SequenceStatus.FINISHED

    def check_invariants(self) -> None:
        """Assert that the books of scheduler, allocator and prefix cache agree."""
        assert all(s.status is SequenceStatus.WAITING for s in self.waiting)
        assert all(s.status is SequenceStatus.RUNNING for s in self.running)
        assert self.running == sorted(self.running, key=_by_number)
        self.waiting.check_invariants()
        tables = [s.page_table for s in self.running if s.page_table is not None]
        for sequence, table in zip(self.running, tables, strict=True):
            assert len(table.pages) * self.allocator.page_size >= sequence.num_cached_tokens
        used = [s.batch_index for s in self.running]
        assert len({*used, *self._batch_indices}) == len(self.running) + len(self._batch_indices)
        self.allocator.check_invariants(tables)
        self.prefix_cache.check_invariants()

    def _chunk(self, sequence: Sequence, count: int) -> ScheduledChunk:
        assert sequence.page_table is not None
        chunk = ScheduledChunk(
            sequence=sequence,
            batch_index=sequence.batch_index,
            page_table=sequence.page_table,
            start=sequence.num_cached_tokens,
            num_tokens=count,
            samples=count == sequence.num_pending_tokens and not sequence.is_prompt_only,
            epoch=sequence.epoch,
        )
        sequence.num_cached_tokens += count
        sequence.num_in_flight += chunk.samples
        return chunk

    def _commit_token(
        self, sequence: Sequence, token_id: int, logprobs: Mapping[Sequence, TokenLogprobs]
    ) -> Event:
        sequence.num_in_flight -= 1
        if token_id < 0:
            return self._end_not_finite(sequence)
        sequence.token_ids.append(token_id)
        self.num_generated_tokens += 1
        self._insert_prefix(sequence, sequence.num_cached_tokens)
        event = Event(token_id, sequence.reason_to_end(self._eos_token_ids))
        if logprobs or sequence.prompt_logprobs is not None:
            event = event._replace(
                logprobs=logprobs.get(sequence), prompt_logprobs=sequence.take_prompt_logprobs()
            )
        if event.finish_reason is not None:
            self.remove(sequence)
        return event

    def _commit_prompt(self, sequence: Sequence) -> Event:
        prompt_logprobs = sequence.take_prompt_logprobs()
        self.remove(sequence)
        return Event(finish_reason=FinishReason.LENGTH, prompt_logprobs=prompt_logprobs)

    def _end(self, sequence: Sequence, failure: Failure, error: str) -> Event:
        self.remove(sequence)
        return Event(finish_reason=FinishReason.ERROR, failure=failure, error=error)

    def _end_not_finite(self, sequence: Sequence) -> Event:
        return self._end(sequence, Failure.NOT_FINITE, "the network gave no finite logits")

    def _insert_prefix(self, sequence: Sequence, num_cached_tokens: int) -> None:
        assert sequence.page_table is not None
        sequence.prefix = self.prefix_cache.insert(
            sequence.token_ids, num_cached_tokens, sequence.page_table, sequence.prefix
        )

    def _make_room(self, sequence: Sequence) -> bool:
        """A page for the next token, at the cost of the youngest if need be, even of itself."""
        table, params = sequence.page_table, sequence.params
        assert table is not None
        while not self.allocator.extend(table, sequence.num_tokens, params.max_length):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _share_prefill(self, counts: dict[Sequence, int]) -> None:
        budget = self._max_prefill_tokens
        prefilling = [s for s in self.running if s.num_pending_tokens > 1]
        if any(s.runs_alone for s in prefilling):
            prefilling = [next(s for s in prefilling if s.runs_alone)]
        for sequence in prefilling:
            others = not sequence.runs_alone and (
                sequence is not prefilling[-1] or bool(self.waiting and self._batch_indices)
            )
            budget -= self._take_chunk(sequence, budget, counts, others=others)
        prefills = bool(prefilling)
        for sequence in self._candidates():
            if not self._batch_indices or budget < min(sequence.num_tokens, self._min_chunk_tokens):
                break
            # Nothing beside one that is to run alone, which waits until nothing else prefills.
            if prefills and (sequence.runs_alone or prefilling[0].runs_alone):
                break
            if self._will_share_with_running(sequence, counts):
                continue
            if not self._admit(sequence):
                break
            prefilling.append(sequence)
            prefills = True
            others = not sequence.runs_alone and bool(self.waiting and self._batch_indices)
            budget -= self._take_chunk(sequence, budget, counts, others=others)
        for sequence in list(counts):
            if budget and sequence.num_pending_tokens > counts[sequence]:
                budget -= self._take_chunk(sequence, budget, counts, others=False)

    def _candidates(self) -> list[Sequence]:
        """The next waiting sequences, if there is a place for any."""
        return list(islice(self.waiting, MAX_CANDIDATES)) if self._batch_indices else []

    def _take_chunk(
        self, sequence: Sequence, budget: int, counts: dict[Sequence, int], *, others: bool
    ) -> int:
        """Give a sequence (more) prefill tokens and return how many."""
        taken = counts.get(sequence, 0)
        pending = sequence.num_pending_tokens - taken
        more = further_tokens(pending, taken, budget, self._min_chunk_tokens, others=others)
        if more:
            counts[sequence] = taken + more
            # Others can read the pages that this step fills in this very step: a layer writes all
            # keys and values before it attends.
            self._insert_prefix(sequence, sequence.num_cached_tokens + taken + more)
        return more

    def _will_share_with_running(self, sequence: Sequence, counts: dict[Sequence, int]) -> bool:
        """Whether a running sequence will compute the next page of the same prompt in a later step.

        What it computes in this step is in the prefix cache already.
        """
        if sequence.prompt_logprobs is not None:
            return False
        size = self.allocator.page_size
        return any(
            other.will_share_next_page(
                sequence, other.num_cached_tokens + counts.get(other, 0), size
            )
            for other in self.running
        )

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence its place and the pages for its tokens, or leave it waiting."""
        allocator, table = self.allocator, PageTable(self.allocator.page_size, self._max_pages)
        prefix = ROOT
        if sequence.prompt_logprobs is None:  # else the network must see every token
            prefix = self.prefix_cache.lookup(sequence.token_ids, table)
        # One page for each that runs, so that they do not take these pages back at once.
        spare = len(self.running)
        wanted = allocator.pages_for(sequence.num_tokens) - len(table.pages)
        if allocator.num_free < wanted + spare or not allocator.extend(
            table, sequence.num_tokens, sequence.params.max_length
        ):
            allocator.release(table)
            return False
        self.waiting.admit(sequence)
        num_hit_tokens = prefix.num_pages * allocator.page_size
        self.num_prefix_query_tokens += sequence.num_tokens
        self.num_prefix_hit_tokens += num_hit_tokens
        if not sequence.number:
            self._num_admitted += 1
            sequence.number = self._num_admitted
            sequence.num_prefix_hit_tokens = num_hit_tokens
        sequence.status = SequenceStatus.RUNNING
        sequence.page_table, sequence.prefix = table, prefix
        sequence.num_cached_tokens = num_hit_tokens
        sequence.batch_index = self._batch_indices.pop()
        insort(self.running, sequence, key=_by_number)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._leave_batch(sequence)
        self.num_preemptions += 1
        self.waiting.put_back(sequence)

    def _leave_batch(self, sequence: Sequence) -> None:
        assert sequence.page_table is not None
        self.running.remove(sequence)
        self.allocator.release(sequence.page_table)
        self._batch_indices.append(sequence.batch_index)
        sequence.status = SequenceStatus.WAITING
        sequence.page_table = None
        sequence.prefix = ROOT
        sequence.num_cached_tokens = sequence.num_in_flight = 0
        if sequence.prompt_logprobs is not None:
            sequence.prompt_logprobs.clear()
        sequence.epoch += 1
