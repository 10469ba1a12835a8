"""A full queue's refusals before the application is called are those that it would make itself."""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from gptj_predictor.server.access import Access
from gptj_predictor.server.active_requests import ActiveRequests
from gptj_predictor.server.admission import RATE_WINDOW, Admission
from gptj_predictor.server.api_keys import ApiKeys
from gptj_predictor.server.drain import Drain, Phase
from gptj_predictor.server.early_refusals import EarlyRefusals
from gptj_predictor.server.gate import Gate
from gptj_predictor.server.middleware import request_middleware
from gptj_predictor.server.request_counts import CountRequests, RequestCounts
from tests.support.secrets import KEYS, key_lines

PATH = "/v1/models/m:predict"
KEYED = (b"authorization", b"Bearer " + KEYS[0].encode())
FORWARDED = (b"x-forwarded-for", b"203.0.113.7")


class Both:
    """Both ways to refuse, before one queue."""

    def __init__(self, *, size: int, keys: ApiKeys | None, proxies: tuple[str, ...]) -> None:
        access = Access(keys=keys, proxies=proxies)
        self.admission = Admission(max_requests=size, max_tokens=1000)
        requests = ActiveRequests(self.admission, max_seconds=60)
        self.drain = Drain(requests, delay_seconds=0, grace_seconds=30)
        self.early_counts, self.counts = RequestCounts(), RequestCounts()
        self.has_reached_the_application = False
        gate = partial(Gate, requests=requests, drain=self.drain)
        self.early = EarlyRefusals(access, gate(self._answer), self.early_counts)
        self.late = request_middleware(
            self._answer,
            1000,
            lambda app: access.guard(gate(app)),
            partial(CountRequests, counts=self.counts),
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.has_reached_the_application = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def ask_late(self, scope: Scope) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, headers and body of the applications' answer."""
        sent: list[Message] = []

        async def receive() -> Message:
            pytest.fail("a refusal needs no body")

        async def send(message: Message) -> None:
            sent.append(message)

        async def ask() -> None:
            await self.late(scope, receive, send)

        asyncio.run(ask())
        start, body = sent
        return start["status"], list(start["headers"]), body["body"]


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    file = tmp_path / "keys"
    file.write_bytes(key_lines(*KEYS))
    return ApiKeys(file)


def make_scope(*headers: tuple[bytes, bytes], method: str = "POST", path: str = PATH) -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": "http",
        "headers": [(b"host", b"x"), *headers],
        "client": ("10.1.2.3", 1234),
    }


def both(size: int = 2, keys: ApiKeys | None = None, *, waiting: int | None = None) -> Both:
    """A queue in which other callers wait; full if it is not said how many."""
    made = Both(size=size, keys=keys, proxies=("10.0.0.0/8",))
    for number in range(size if waiting is None else waiting):
        made.admission.enter(f"other {number}", 60)
    return made


REFUSED = {
    "v1": make_scope(),
    "its id": make_scope((b"x-request-id", b"mine")),
    "a bad id": make_scope((b"x-request-id", b"two words")),
    "forwarded": make_scope(FORWARDED),
    "its key": make_scope(KEYED),
    "oip": make_scope(path="/v2/models/m/infer"),
    "openai": make_scope(path="/openai/v1/completions"),
    "a deadline": make_scope((b"x-request-timeout", b"3")),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("keyed", [False, True], ids=["open", "keyed"])
def test_refusals_are_the_same(
    name: str, keyed: bool, keys: ApiKeys, caplog: pytest.LogCaptureFixture
) -> None:
    made = both(keys=keys if keyed else None)
    headers = REFUSED[name]["headers"]
    scope = {**REFUSED[name], "headers": [*headers, *([KEYED] if keyed else [])]}
    with caplog.at_level(logging.INFO):
        early = made.early(dict(scope))
        status, late_headers, body = made.ask_late(dict(scope))
    assert early is not None
    assert (early.status, early.body) == (status, body) == (429, body)
    assert without_id(early.headers) == without_id(late_headers)
    assert made.early_counts.outcomes == made.counts.outcomes
    assert made.early_counts.rejections == made.counts.rejections
    assert made.counts.rejections[("queued_requests",)] == 1
    first, second = caplog.records
    ids = dict(early.headers)[b"x-request-id"], dict(late_headers)[b"x-request-id"]
    for record, request_id in zip((first, second), ids, strict=True):
        assert vars(record)["request_id"] == request_id.decode()
    assert line(first) == line(second)
    assert first.levelno == second.levelno == logging.WARNING
    if name == "its id":
        assert ids == (b"mine", b"mine")
    if name == "forwarded" and not keyed:
        assert vars(first)["caller"] == "203.0.113.7"
    assert not made.has_reached_the_application


def without_id(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return sorted(header for header in headers if header[0] != b"x-request-id")


def line(record: logging.LogRecord) -> str:
    """A log line without what differs between any two requests."""
    return re.sub(r"[\d.]+ ms id=\S+", "", record.getMessage())


@pytest.mark.parametrize(
    "scope",
    [
        make_scope(method="GET"),
        make_scope(path="/v1/models/m"),
        make_scope(path="/tokenize"),
        make_scope((b"x-request-timeout", b"soon")),
    ],
    ids=["method", "no text", "other call", "bad deadline"],
)
def test_what_is_none_of_its_business(scope: Scope) -> None:
    made = both()
    assert made.early(scope) is None
    assert not any(made.early_counts.outcomes.values())


@pytest.mark.parametrize(
    "headers", [[], [(b"authorization", b"Bearer nonsense")]], ids=["no key", "unknown key"]
)
def test_a_key_comes_before_the_queue(headers: list[tuple[bytes, bytes]], keys: ApiKeys) -> None:
    made = both(keys=keys)
    assert made.early(make_scope(*headers)) is None
    assert made.ask_late(make_scope(*headers))[0] == 401


def test_while_there_is_room() -> None:
    made = both(waiting=1)
    assert made.early(make_scope()) is None
    assert made.ask_late(make_scope())[0] == 200


def test_while_the_server_ends() -> None:
    made = both()
    made.drain.phase = Phase.REFUSING
    assert made.early(make_scope()) is None
    assert made.ask_late(make_scope())[0] == 503


@pytest.mark.parametrize(
    ("headers", "refused"), [([], True), ([FORWARDED], False)], ids=["greedy", "another"]
)
def test_share_of_a_caller(headers: list[tuple[bytes, bytes]], refused: bool) -> None:
    made = both(size=5, waiting=0)
    for _ in range(4):
        made.admission.enter("10.1.2.3", 60)
    assert (made.early(make_scope(*headers)) is not None) == refused
    assert made.early_counts.rejections[("caller_share",)] == refused


@pytest.mark.parametrize(("seconds", "refused"), [(b"0.001", True), (b"50", False)])
def test_what_would_be_too_late(seconds: bytes, refused: bool) -> None:
    made = both(size=500, waiting=0)
    for _ in range(RATE_WINDOW):
        ticket = made.admission.enter("other", 60)
        ticket.started(0)
    for number in range(64):
        made.admission.enter(f"other {number}", 60)
    made.admission._starts[0] -= 1  # a second for all those starts
    assert (made.early(make_scope((b"x-request-timeout", seconds))) is not None) == refused
    assert made.early_counts.rejections[("too_late",)] == refused
