"""Who runs when, without a network: every scheduled chunk that samples gives some token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gptj_predictor.engine.prefill_share import further_tokens, min_chunk_tokens
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
        assert 16 - 8 < sum(counts.values()) <= 16  # what is left would be too small a chunk


@pytest.mark.parametrize("budget", [128, 256, 2048])
@pytest.mark.parametrize("length", [65, 100, 127, 180])
def test_no_small_pieces_of_a_prompt(budget: int, length: int) -> None:
    """At least 64 tokens, unless they are the last; none joins the batch for nothing."""
    of = scheduler(budget=budget, batch=60, pages=4000)
    sequences = [add(of, prompt(length + n, 300 * n), 1) for n in range(60)]
    done = dict.fromkeys(sequences, 0)
    steps = 0
    while not all(map(ended, sequences)):
        counts = step(of)
        steps += 1
        for sequence, count in counts.items():
            done[sequence] += count
            assert count >= 64 or done[sequence] == length + sequences.index(sequence)
        wanted = sum(length + n for n in range(60)) - sum(done.values())
        # A last token alone is computed as those that decode are, beside the budget.
        taken = sum(count for count in counts.values() if count > 1)
        assert budget - 64 < taken <= budget or not wanted
        assert all(done[sequence] for sequence in of.running)
    # No more steps than the budget's unused ends explain.
    assert steps <= -(-sum(length + n for n in range(60)) // (budget - 63))


def test_prompts_of_a_page_less_than_a_chunk_fill_the_budget() -> None:
    """As many whole ones as fit, and a part of the next only if it is large enough."""
    of = scheduler(budget=256, batch=60, pages=4000)
    for n in range(9):
        add(of, prompt(60, 100 * n), 1)
    assert sorted(step(of).values()) == [60] * 4
    assert sorted(step(of).values()) == [60] * 4


@pytest.mark.parametrize(
    ("pending", "taken", "budget", "others", "more"),
    [
        (200, 0, 256, True, 128),
        (200, 0, 256, False, 200),
        (150, 0, 256, True, 150),  # not 128 and 22
        (200, 0, 64, True, 64),
        (200, 0, 63, True, 0),
        (63, 0, 63, True, 63),
        (64, 0, 63, False, 0),
        (20, 0, 256, True, 20),
        (200, 64, 30, False, 30),
        (90, 0, 80, True, 64),
        (0, 60, 10, False, 0),
    ],
)
def test_a_prompt_s_share(pending: int, taken: int, budget: int, others: bool, more: int) -> None:
    assert further_tokens(pending, taken, budget, 64, others=others) == more


def test_a_small_budget_is_for_two() -> None:
    assert [min_chunk_tokens(budget) for budget in (1, 20, 127, 128, 2048)] == [1, 10, 63, 64, 64]


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
