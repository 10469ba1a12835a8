"""Which sequences run in the next step.

The rule: first come, first served. A waiting sequence starts when there is a place in the batch and
when the pages for its whole possible length are free, so a running sequence never lacks a page and
always ends. Nobody overtakes the head of the queue, so the head's turn comes.
"""

from __future__ import annotations

from collections import deque

from gptj_predictor.engine.pages import PagePool
from gptj_predictor.engine.request import RequestRefusedError
from gptj_predictor.engine.sequence import Sequence


class Scheduler:
    """The queue, the running batch and their pages."""

    def __init__(self, pool: PagePool, *, max_batch_size: int, max_prefill_tokens: int) -> None:
        self.pool = pool
        self.max_batch_size = max_batch_size
        self.max_prefill_tokens = max_prefill_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def check_fits(self, sequence: Sequence) -> None:
        """Refuse what could never start, even with the cache to itself.

        Raises:
            RequestRefusedError: the sequence's greatest length needs more than all pages.
        """
        if self.pool.pages_for(sequence.params.max_length) > self.pool.total:
            raise RequestRefusedError(
                f"{sequence.params.max_length} tokens (prompt included) do not fit the KV cache; "
                f"at most {self.pool.tokens} do"
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that passed :meth:`check_fits`."""
        self.waiting.append(sequence)

    def plan(self) -> tuple[list[Sequence], list[int]]:
        """Choose the next step's sequences.

        Returns:
            The sequences, those that bring one token first, and the pages handed out for them,
            which must be cleared before they are used.
        """
        fresh = self._admit()
        self.running.extend(fresh)
        # Stable, so that neighbours in the batch stay neighbours.
        self.running.sort(key=lambda sequence: len(sequence.token_ids) - sequence.cached > 1)
        return list(self.running), [page for sequence in fresh for page in sequence.pages]

    def _admit(self) -> list[Sequence]:
        fresh: list[Sequence] = []
        prefill_tokens = 0
        while self.waiting and len(self.running) + len(fresh) < self.max_batch_size:
            sequence = self.waiting[0]
            pages = self.pool.pages_for(sequence.params.max_length)
            prefill_tokens += len(sequence.token_ids)
            if pages > self.pool.free or (fresh and prefill_tokens > self.max_prefill_tokens):
                break
            sequence.pages = self.pool.take(pages)
            fresh.append(self.waiting.popleft())
        return fresh

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is and take its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self.pool.give_back(sequence.pages)
        sequence.pages = []

    def drop_cancelled(self) -> list[Sequence]:
        """Remove every cancelled sequence and return them."""
        cancelled = [s for s in (*self.running, *self.waiting) if s.cancelled]
        for sequence in cancelled:
            self.remove(sequence)
        return cancelled
