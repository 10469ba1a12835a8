"""The queue's bounds."""

from __future__ import annotations

import threading

import pytest

from gptj_predictor.server.admission import (
    MAX_RETRY_SECONDS,
    RATE_WINDOW,
    Admission,
    QueueFullError,
    Refusal,
    Ticket,
)

#: What a request may take, where it does not matter.
HOUR = 3600.0


def refusal(admission: Admission, caller: str) -> Refusal:
    with pytest.raises(QueueFullError) as refused:
        admission.enter(caller, HOUR)
    with pytest.raises(QueueFullError):
        admission.check(caller, HOUR)
    assert 1 <= refused.value.retry_after <= MAX_RETRY_SECONDS
    return refused.value.refusal


def fill(admission: Admission, caller: str) -> list[Ticket]:
    tickets = []
    while True:
        try:
            tickets.append(admission.enter(caller, HOUR))
        except QueueFullError:
            return tickets


def test_a_greedy_caller_gets_four_fifths_and_others_get_in() -> None:
    admission = Admission(100, 1000)
    tickets = fill(admission, "greedy")
    assert len(tickets) == 80
    assert refusal(admission, "greedy") is Refusal.CALLER_SHARE
    assert len(fill(admission, "second")) == 16
    assert len(fill(admission, "third")) == 4
    assert refusal(admission, "fourth") is Refusal.QUEUED_REQUESTS
    assert admission.num_requests == 100
    tickets[0].leave()
    tickets[0].leave()
    assert admission.num_requests == 99
    admission.check("fourth", HOUR)


def test_a_queue_of_one() -> None:
    admission = Admission(1, 1)
    ticket = admission.enter("a", HOUR)
    ticket.add_tokens(50_000)
    assert refusal(admission, "b") is Refusal.QUEUED_REQUESTS
    ticket.started(50_000)
    assert (admission.num_requests, admission.num_tokens) == (0, 0)
    admission.enter("b", HOUR)


def test_tokens() -> None:
    admission = Admission(100, 1000)
    first = admission.enter("a", HOUR)
    first.add_tokens(5000)  # alone: or it would never run
    second = admission.enter("b", HOUR)
    with pytest.raises(
        QueueFullError, match="5000 of 1000 prompt tokens wait, and the request"
    ) as e:
        second.add_tokens(1)
    assert e.value.refusal is Refusal.QUEUED_TOKENS
    for _ in range(10):  # its ten sequences start one after the other
        first.started(500)
    assert admission.num_tokens == 0
    second.add_tokens(600)
    third = admission.enter("b", HOUR)
    with pytest.raises(QueueFullError) as refused:
        third.add_tokens(300)  # 900 would be more than four times what is left
    assert refused.value.refusal is Refusal.CALLER_SHARE
    third.add_tokens(200)
    admission.enter("c", HOUR).add_tokens(150)
    second.leave()
    third.leave()
    assert admission.num_tokens == 150


def test_a_request_waits_until_its_first_sequence_starts() -> None:
    admission = Admission(10, 1000)
    ticket = admission.enter("a", HOUR)
    ticket.add_tokens(30)
    ticket.started(10)
    assert (admission.num_requests, admission.num_tokens) == (0, 20)
    ticket.started(10)
    ticket.leave()
    ticket.started(10)  # the engine's thread was a moment late
    assert (admission.num_requests, admission.num_tokens) == (0, 0)


def test_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits, over the rate at which the last ones started."""
    now = 1000.0
    monkeypatch.setattr("gptj_predictor.server.admission.time.monotonic", lambda: now)
    admission = Admission(30, 1000)
    for _ in range(20):
        admission.enter("a", HOUR).started(0)
        now += 0.5
    waiting = fill(admission, "b")
    with pytest.raises(QueueFullError, match="come back in 12 s") as refused:
        admission.enter("b", HOUR)
    assert len(waiting) == 24
    assert refused.value.retry_after == 12  # 24 requests at 2 a second
    now += 1000  # nothing starts any more
    with pytest.raises(QueueFullError) as refused:
        admission.enter("b", HOUR)
    assert refused.value.retry_after == MAX_RETRY_SECONDS


def test_what_would_be_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known only once the rate is."""
    now = 1000.0
    monkeypatch.setattr("gptj_predictor.server.admission.time.monotonic", lambda: now)
    admission = Admission(1000, 1000)
    for _ in range(RATE_WINDOW):
        admission.check("b", 1.0)
        admission.enter("a", HOUR).started(0)
        now += 0.5
    for _ in range(20):
        admission.enter("a", HOUR)
    admission.check("b", 11.0)
    with pytest.raises(QueueFullError, match="takes about 10 s, and the request has 9 s") as late:
        admission.enter("b", 9.0)
    assert late.value.refusal is Refusal.TOO_LATE
    assert late.value.retry_after == 10


def test_callers_that_have_gone_leave_nothing() -> None:
    admission = Admission(10, 1000)
    for number in range(1000):
        ticket = admission.enter(f"caller {number}", HOUR)
        ticket.add_tokens(5)
        ticket.leave()
    assert not admission._requests
    assert not admission._tokens


def test_threads() -> None:
    """The event loop lets in and the engine's thread starts, at the same time."""
    admission = Admission(10**6, 10**9)
    tickets = [admission.enter("a", HOUR) for _ in range(5000)]

    def start() -> None:
        for ticket in tickets:
            ticket.started(3)

    thread = threading.Thread(target=start)
    thread.start()
    for ticket in tickets:
        ticket.add_tokens(3)
        ticket.leave()
    thread.join()
    assert (admission.num_requests, admission.num_tokens) == (0, 0)
