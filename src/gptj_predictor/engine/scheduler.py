"""Which sequences run in the next step, and with how many of their tokens.

The rule, in the order of arrival:

* Every sequence that decodes gets its next token.
* Prompts share the step's prefill budget: each may take half of what is left while others want
  some too, and what nobody takes goes to the oldest. So a long prompt neither stops those that
  decode nor those that come after it, and the oldest always gets at least half.
* A waiting sequence starts when there is a place in the batch and pages for its tokens. None
  overtakes it, except that one whose prompt is being computed by another right now waits to share
  it, and lets others by.
* A decoding sequence that needs a page when none is free takes back those of the youngest, which
  waits again, at its old place, and is recomputed later.

Nobody starves: the oldest sequence never loses its pages to another, any sequence that was let in
fits the cache alone, so the oldest always ends, and then there is a next oldest.
"""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from gptj_predictor.engine.pages import PageAllocator, PageTable
from gptj_predictor.engine.request import RequestRefusedError
from gptj_predictor.engine.sequence import Row, Sequence

_by_arrival = attrgetter("number")


class Scheduler:
    """The queue, the running batch and their pages."""

    def __init__(
        self, pool: PageAllocator, *, max_batch_size: int, max_prefill_tokens: int, context: int
    ) -> None:
        self.pool = pool
        self.max_prefill_tokens = max_prefill_tokens
        self.preemptions = 0
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._context = context
        self._slots = list(reversed(range(max_batch_size)))
        self._arrivals = 0

    def check_fits(self, max_length: int) -> None:
        """Refuse what could never end, even with the cache to itself.

        Raises:
            RequestRefusedError: ``max_length`` tokens need more than all pages.
        """
        if self.pool.pages_for(max_length) > self.pool.total:
            raise RequestRefusedError(
                f"{max_length} tokens (prompt included) do not fit the KV cache; "
                f"at most {self.pool.tokens} do"
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that passed :meth:`check_fits`."""
        self._arrivals += 1
        sequence.number = self._arrivals
        self.waiting.append(sequence)

    def plan(self) -> list[Row]:
        """Choose what the next step computes.

        Returns:
            Rows of one token first, at most one row per sequence.
        """
        counts: dict[Sequence, int] = {}
        for sequence in list(self.running):
            decodes = sequence.pending == 1 and not sequence.exhausted
            if decodes and sequence.slot is not None and self._make_room(sequence):
                counts[sequence] = 1
        self._share_prefill(counts)
        return [self._row(s, count) for s, count in sorted(counts.items(), key=lambda c: c[1] > 1)]

    def _row(self, sequence: Sequence, count: int) -> Row:
        samples = count == sequence.pending
        first, sequence.joined = not sequence.joined, True
        row = Row(sequence, sequence.cached, count, samples, first, sequence.run)
        sequence.cached += count
        sequence.in_flight += samples
        return row

    def _make_room(self, sequence: Sequence) -> bool:
        """A page for the next token, at the cost of the youngest if need be, even of itself."""
        assert sequence.table is not None
        while not self.pool.extend(sequence.table, sequence.length, sequence.params.max_length):
            youngest = self.running[-1]
            self._leave_batch(youngest)
            self.preemptions += 1
            insort(self.waiting, youngest, key=_by_arrival)
            if youngest is sequence:
                return False
        return True

    def _share_prefill(self, counts: dict[Sequence, int]) -> None:
        budget = self.max_prefill_tokens
        prefilling = [s for s in self.running if s.pending > 1]
        for sequence in prefilling:
            others = sequence is not prefilling[-1] or bool(self.waiting and self._slots)
            budget -= self._take_chunk(sequence, budget, counts, others=others)
        for sequence in list(self.waiting):
            if not budget or not self._slots:
                break
            if self._shares_with_running(sequence, counts):
                continue
            if not self._admit(sequence):
                break
            others = bool(self.waiting and self._slots)
            budget -= self._take_chunk(sequence, budget, counts, others=others)
        for sequence in list(counts):
            if budget and sequence.pending > counts[sequence]:
                budget -= self._take_chunk(sequence, budget, counts, others=False)

    def _take_chunk(
        self, sequence: Sequence, budget: int, counts: dict[Sequence, int], *, others: bool
    ) -> int:
        """Give a sequence (more) prefill tokens and return how many."""
        assert sequence.table is not None
        taken = counts.get(sequence, 0)
        share = max(1, budget // 2) if others else budget
        more = min(sequence.pending - taken, share)
        if more:
            counts[sequence] = taken + more
            # Pages that this step fills can be read by others in this very step: a layer writes
            # all keys and values before it attends.
            self.pool.enter_prefix(
                sequence.token_ids, sequence.cached + taken + more, sequence.table
            )
        return more

    def _shares_with_running(self, sequence: Sequence, counts: dict[Sequence, int]) -> bool:
        """Whether a running sequence will compute the next page of the same prefix in a later step.

        What it computes in this step is in the tree already.
        """
        size = self.pool.page_size
        for other in self.running:
            done = other.cached + counts.get(other, 0)
            end = (done // size + 1) * size
            if (
                done < other.length
                and end <= len(other.token_ids)
                and end < len(sequence.token_ids)
                and sequence.token_ids[:end] == other.token_ids[:end]
            ):
                return True
        return False

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence its place and the pages for its tokens, or leave it waiting."""
        table = PageTable(self.pool.page_size, self.pool.pages_for(self._context))
        cached = self.pool.find_prefix(sequence.token_ids, table)
        # One page each for those that run, so that they do not at once take these back.
        spare = len(self.running)
        wanted = self.pool.pages_for(sequence.length) - len(table.pages)
        if self.pool.free < wanted + spare or not self.pool.extend(
            table, sequence.length, sequence.params.max_length
        ):
            self.pool.release(table)
            return False
        sequence.table, sequence.cached, sequence.slot = table, cached, self._slots.pop()
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_by_arrival)
        return True

    def _leave_batch(self, sequence: Sequence) -> None:
        assert sequence.table is not None
        assert sequence.slot is not None
        self.running.remove(sequence)
        self.pool.release(sequence.table)
        self._slots.append(sequence.slot)
        sequence.table = sequence.slot = None
        sequence.cached = sequence.in_flight = 0
        sequence.joined = False
        sequence.run += 1

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is and take its pages back."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
        else:
            self._leave_batch(sequence)

    def drop_cancelled(self) -> list[Sequence]:
        """Remove every cancelled sequence and return them."""
        cancelled = [s for s in (*self.running, *self.waiting) if s.cancelled]
        for sequence in cancelled:
            self.remove(sequence)
        return cancelled
