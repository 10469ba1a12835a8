"""Whose turn it is."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gptj_predictor.engine.scheduler import Scheduler
from gptj_predictor.engine.sequence import Sequence, StepResults
from gptj_predictor.engine.waiting_queue import WaitingQueue
from tests.support.engines import GREEDY


def waiting(caller: str, number: int = 0) -> Sequence:
    return Sequence([1], GREEDY, caller, number=number)


def admit_all(queue: WaitingQueue) -> list[Sequence]:
    order = []
    while queue:
        queue.check_invariants()
        sequence = next(iter(queue))
        queue.admit(sequence)
        order.append(sequence)
    return order


def test_callers_take_turns() -> None:
    queue = WaitingQueue()
    greedy = [waiting("greedy") for _ in range(5)]
    for sequence in greedy:
        queue.add(sequence)
    modest, other = waiting("modest"), waiting("other")
    queue.add(modest)
    queue.add(other)
    order = [greedy[0], modest, other, *greedy[1:]]
    assert list(queue) == order
    assert admit_all(queue) == order


def test_a_caller_that_comes_back_waits_for_its_turn() -> None:
    queue = WaitingQueue()
    first, second, third = waiting("a"), waiting("a"), waiting("b")
    queue.add(first)
    queue.add(second)
    queue.admit(first)
    queue.add(third)
    late = waiting("c")
    queue.add(late)
    assert admit_all(queue) == [second, third, late]


def test_those_that_had_a_place_come_first_the_oldest_before() -> None:
    queue = WaitingQueue()
    new, young, old = waiting("a"), waiting("a", 9), waiting("b", 4)
    queue.add(new)
    queue.put_back(young)
    queue.put_back(old)
    assert len(queue) == 3
    queue.remove(young)
    assert admit_all(queue) == [old, new]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=60))
def test_nobody_waits_longer_than_a_turn_of_each_other(
    steps: list[tuple[str, int]],
) -> None:
    """Add, and admit now and then: between two turns of a caller no other has had two.

    Unless the other has come first: a caller that just came takes its turn after those there.
    """
    queue = WaitingQueue()
    turns: list[str] = []
    present: list[set[str]] = []
    for caller, admitted in steps:
        queue.add(waiting(caller))
        for _ in range(min(admitted, len(queue))):
            present.append({sequence.caller for sequence in queue})
            sequence = next(iter(queue))
            queue.admit(sequence)
            turns.append(sequence.caller)
        queue.check_invariants()
    for caller in "abc":
        skipped: list[str] = []
        for turn, there in zip(turns, present, strict=True):
            if turn == caller or caller not in there:
                skipped = []
            else:
                skipped.append(turn)
                assert len(skipped) == len(set(skipped))


def scheduler(batch: int) -> Scheduler:
    return Scheduler(
        num_pages=20,
        page_size=4,
        max_batch_size=batch,
        max_prefill_tokens=32,
        max_context=256,
    )


def test_a_greedy_caller_delays_another_by_one_turn() -> None:
    of = scheduler(batch=1)
    short = replace(GREEDY, max_length=3)
    for _ in range(1000):
        of.add(Sequence([1, 2], short, "greedy"))
    modest = Sequence([3, 4], short, "modest")
    of.add(modest)
    of.commit(StepResults([(chunk, 9) for chunk in of.schedule()]))  # the first of the greedy one's
    of.commit(StepResults([(chunk, 9) for chunk in of.schedule()]))
    assert modest.token_ids == [3, 4, 9]
    assert len(of.waiting) == 999
    of.check_invariants()


def test_a_sequence_that_waits_for_pages_is_counted_once() -> None:
    of = scheduler(batch=2)
    of.add(Sequence(list(range(60)), replace(GREEDY, max_length=70)))
    of.add(Sequence(list(range(100, 160)), replace(GREEDY, max_length=70)))
    while of.running or of.waiting:
        chunks = of.schedule()
        of.commit(StepResults([(chunk, 7) for chunk in chunks if chunk.samples]))
    assert of.num_prefix_query_tokens == 120
    assert of.num_prefix_hit_tokens == 0
