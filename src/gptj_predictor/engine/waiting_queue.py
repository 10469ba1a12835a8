"""Sequences without a place in the batch, in the order in which they get one."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator

from gptj_predictor.engine.sequence import Sequence


class WaitingQueue:
    """First those that lost their place, then the callers in turn.

    Each turn is one sequence of one caller, that caller's oldest. So a caller with a thousand
    waiting sequences delays another one's by a single turn.
    """

    def __init__(self) -> None:
        self._preempted: list[Sequence] = []  # by number
        # The next caller first. Only callers with waiting sequences are here.
        self._callers: OrderedDict[str, OrderedDict[Sequence, None]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._preempted) + self._size

    def __iter__(self) -> Iterator[Sequence]:
        """In the order of admission, if each gets a place; the queue must not change meanwhile."""
        yield from self._preempted
        turns = [iter(sequences) for sequences in self._callers.values()]
        while turns:
            left = []
            for turn in turns:
                for sequence in turn:
                    yield sequence
                    left.append(turn)
                    break
            turns = left

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence behind its caller's others."""
        self._callers.setdefault(sequence.caller, OrderedDict())[sequence] = None
        self._size += 1

    def put_back(self, sequence: Sequence) -> None:
        """Queue a sequence that has had a place; among these the older comes first."""
        insort(self._preempted, sequence, key=lambda other: other.number)

    def admit(self, sequence: Sequence) -> None:
        """Take out a sequence that gets a place; its caller has had its turn."""
        is_new = sequence.number == 0
        self.remove(sequence)
        if is_new and sequence.caller in self._callers:
            self._callers.move_to_end(sequence.caller)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is."""
        if sequence.number:
            self._preempted.remove(sequence)
            return
        sequences = self._callers[sequence.caller]
        del sequences[sequence]
        if not sequences:
            del self._callers[sequence.caller]
        self._size -= 1

    def check_invariants(self) -> None:
        """Assert that the books agree."""
        numbers = [sequence.number for sequence in self._preempted]
        assert numbers == sorted(numbers)
        assert 0 not in numbers
        assert self._size == sum(map(len, self._callers.values()))
        for caller, sequences in self._callers.items():
            assert sequences
            assert all(s.caller == caller and not s.number for s in sequences)
