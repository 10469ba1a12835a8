"""Who runs when, without a network: every scheduled chunk that samples gives some token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gptj_predictor.engine.request import RequestRefusedError
from gptj_predictor.engine.scheduler import Scheduler
from gptj_predictor.engine.sequence import Sequence, StepResults
from tests.support.engines import GREEDY

SIZE = 4


def scheduler(*, pages: int = 200, batch: int = 8, budget: int = 32) -> Scheduler:
    return Scheduler(
        num_pages=pages,
        page_size=SIZE,
        max_batch_size=batch,
        max_prefill_tokens=budget,
        max_context=256,
    )


def add(to: Scheduler, prompt: list[int], new: int) -> Sequence:
    max_length = len(prompt) + new
    sequence = Sequence(prompt, replace(GREEDY, max_length=max_length))
    to.check_fits(max_length)
    to.add(sequence)
    return sequence


def prompt(length: int, first: int = 0) -> list[int]:
    return list(range(first, first + length))


def step(of: Scheduler) -> dict[Sequence, int]:
    """Schedule a step, check what must always hold, and commit some token for each sample."""
    chunks = of.schedule()
    assert len({chunk.sequence for chunk in chunks}) == len(chunks)
    assert [chunk.num_tokens > 1 for chunk in chunks] == sorted(c.num_tokens > 1 for c in chunks)
    for chunk in chunks:
        assert len(chunk.page_table.pages) * SIZE >= chunk.end
    of.check_invariants()
    counts = {chunk.sequence: chunk.num_tokens for chunk in chunks}
    of.commit(StepResults([(c, 1000 + len(c.sequence.token_ids)) for c in chunks if c.samples]))
    of.check_invariants()
    return counts


def steps_until(of: Scheduler, true: Callable[[], bool], max_steps: int = 2000) -> int:
    for count in range(max_steps):
        if true():
            return count
        step(of)
    raise AssertionError(f"not within {max_steps} steps")


def ended(sequence: Sequence) -> bool:
    return len(sequence.token_ids) == sequence.params.max_length


def test_a_long_prompt_stalls_nobody() -> None:
    """Those that decode get a token each step; a short prompt behind it starts at once."""
    of = scheduler(budget=16)
    decoding = add(of, prompt(4), 100)
    step(of)
    long = add(of, prompt(200, 500), 5)
    short = add(of, prompt(6, 800), 50)
    first = step(of)
    # Half for the oldest, all that the short one wants, and the rest for the oldest again.
    assert first == {decoding: 1, long: 10, short: 6}
    for _ in range(11):
        assert step(of) == {decoding: 1, short: 1, long: 16}
    assert step(of)[long] == 14
    assert long.num_tokens == 201


def test_the_oldest_prompt_gets_at_least_half() -> None:
    of = scheduler(budget=16, batch=50)
    sequences = [add(of, prompt(100, 200 * index), 1) for index in range(30)]
    while not ended(sequences[0]):
        left = sequences[0].num_pending_tokens
        counts = step(of)
        assert counts[sequences[0]] >= min(8, left)
        assert sum(counts.values()) == 16


def test_the_budget_holds_for_any_mixture() -> None:
    of = scheduler(budget=10, pages=59, batch=6)
    sequences = [add(of, prompt(1 + 7 * n % 60, 100 * n), 1 + n % 9) for n in range(40)]
    while not all(map(ended, sequences)):
        decoding = {s for s in of.running if s.num_pending_tokens == 1}
        counts = step(of)
        assert sum(count for s, count in counts.items() if s not in decoding) <= 10
        assert len(of.running) <= 6
    assert of.allocator.num_used == 0


def test_first_come_first_served() -> None:
    """A place in the batch goes to who came first, whatever the size."""
    of = scheduler(batch=1)
    sequences = [add(of, prompt(length, 300 * length), 3) for length in (100, 3, 50, 1)]
    order: list[Sequence] = []
    while len(order) < 4:
        step(of)
        order += [s for s in sequences if ended(s) and s not in order]
    assert order == sequences


def test_the_youngest_gives_way_and_returns_to_its_place() -> None:
    of = scheduler(pages=30)  # 120 tokens
    first, second, third = (add(of, prompt(10, 100 * n), 80) for n in range(3))
    steps_until(of, lambda: of.num_preemptions == 1)
    assert of.running == [first, second]
    assert third in of.waiting
    late = add(of, prompt(2, 900), 2)
    steps_until(of, lambda: ended(first))
    assert first.epoch == 1  # left once, at its end
    steps_until(of, lambda: ended(second) and ended(third) and ended(late))
    assert len(third.token_ids) == 90
    assert third.token_ids[:10] == prompt(10, 200)
    assert of.allocator.num_used == 0


def test_one_that_fills_the_cache_alone_ends_among_others() -> None:
    of = scheduler(pages=30)
    others = [add(of, prompt(9, 100 * n), 60) for n in range(5)]
    giant = add(of, prompt(60, 900), 60)  # all 30 pages
    more = [add(of, prompt(9, 1000 * n), 60) for n in range(5)]
    steps_until(of, lambda: all(map(ended, [*others, giant, *more])))
    assert of.allocator.num_used == 0


def test_what_can_never_fit() -> None:
    of = scheduler(pages=30)
    with pytest.raises(RequestRefusedError, match=r"121 tokens .* at most 120 do"):
        of.check_fits(121)
    of.check_fits(120)


def test_siblings_share_their_prompt_in_the_very_first_step() -> None:
    of = scheduler(budget=64)
    same = prompt(30)
    siblings = [add(of, list(same), 4) for _ in range(4)]
    # The first computes all of it, the others only what lies behind the last full page.
    assert list(step(of).values()) == [30, 2, 2, 2]
    tables = [s.page_table.pages for s in siblings if s.page_table is not None]
    assert all(pages[:7] == tables[0][:7] for pages in tables)
    assert of.allocator.num_used == 7 + 4
    steps_until(of, lambda: all(map(ended, siblings)))
    assert of.allocator.num_used == 0


def test_siblings_wait_for_a_prompt_that_takes_several_steps_and_let_others_by() -> None:
    of = scheduler(budget=16)
    same = prompt(90)
    leader, follower = add(of, list(same), 4), add(of, list(same), 4)
    other = add(of, prompt(8, 500), 4)
    counts = step(of)
    assert follower not in counts
    assert other in counts
    computed = {leader: counts[leader], follower: 0}
    while not follower.num_tokens > 90:
        for sequence, count in step(of).items():
            computed[sequence] = computed.get(sequence, 0) + count
    assert computed[follower] < 8


def test_a_cancelled_leader_does_not_hold_up_its_followers() -> None:
    of = scheduler(budget=16)
    leader, follower = add(of, prompt(90), 4), add(of, prompt(90), 4)
    step(of)
    of.remove(leader)
    assert follower in step(of)
    steps_until(of, lambda: ended(follower))
    assert of.allocator.num_used == 0


def test_after_its_end_a_prompt_is_remembered_with_its_answer() -> None:
    of = scheduler(budget=64)
    first = add(of, prompt(30), 11)
    steps_until(of, lambda: ended(first))
    follow_up = add(of, [*first.token_ids, 7, 8, 9], 2)
    # 41 tokens, of which the last was never fed: 40 in full pages.
    assert step(of) == {follow_up: 4}
