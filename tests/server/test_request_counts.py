"""What becomes of a request, as it is counted; no server needed."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

import gptj_predictor.server
from gptj_predictor.server.admission import Refusal
from gptj_predictor.server.middleware import CLIENT_GONE, RequestId, note_refusal
from gptj_predictor.server.request_counts import REASONS, CountRequests, RequestCounts

PATH = "/v1/models/m:predict"


def counted(
    status: int | None, refusal: str | None = None, *, method: str = "POST", path: str = PATH
) -> RequestCounts:
    """The counts after one request that got an answer."""
    counts = RequestCounts()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if refusal is not None:
            note_refusal(scope, refusal)
        if status is not None:
            await send({"type": "http.response.start", "status": status})
            await send({"type": "http.response.body"})

    ask(CountRequests(app, counts), method, path)
    return counts


def ask(app: CountRequests, method: str = "POST", path: str = PATH) -> list[str]:
    """Send one request; the types of the messages that came back."""
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message["type"])

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(RequestId(app)(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("status", "refusal", "outcome", "reason"),
    [
        (200, None, "ok", None),
        (400, None, "rejected", "invalid"),
        (401, None, "rejected", "unauthenticated"),
        (404, None, "rejected", "not_found"),
        (413, None, "rejected", "too_large"),
        (415, None, "rejected", "invalid"),
        (429, Refusal.QUEUED_REQUESTS, "rejected", "queued_requests"),
        (429, Refusal.QUEUED_TOKENS, "rejected", "queued_tokens"),
        (429, Refusal.CALLER_SHARE, "rejected", "caller_share"),
        (429, Refusal.TOO_LATE, "rejected", "too_late"),
        (503, "not_ready", "rejected", "not_ready"),
        (503, "draining", "rejected", "draining"),
        (503, "out_of_memory", "rejected", "out_of_memory"),
        (504, None, "rejected", "deadline"),
        (503, None, "error", None),
        (500, None, "error", None),
        (None, None, "error", None),
        (None, CLIENT_GONE, "cancelled", None),
        (200, CLIENT_GONE, "cancelled", None),
    ],
)
def test_outcome_and_reason(
    status: int | None, refusal: str | None, outcome: str, reason: str | None
) -> None:
    counts = counted(status, refusal)
    assert {key: n for key, n in counts.outcomes.items() if n} == {("v1", outcome): 1}
    assert [key for key, n in counts.rejections.items() if n] == ([(reason,)] if reason else [])
    assert sum(counts.seconds.read().counts) == (outcome == "ok")


def test_no_new_label_for_an_unknown_reason() -> None:
    counts = counted(429, "what a caller wrote")
    assert set(counts.rejections) == {(reason,) for reason in REASONS}
    assert counts.rejections[("invalid",)] == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", PATH), ("POST", "/v1/models/m"), ("GET", "/metrics"), ("POST", "/v2/models/m/load")],
)
def test_only_requests_for_texts_are_counted(method: str, path: str) -> None:
    counts = counted(200, method=method, path=path)
    assert not any(counts.outcomes.values())


@pytest.mark.parametrize("error", [ClientDisconnect(), HTTPException(400)])
def test_what_raises_is_counted_and_passed_on(error: Exception) -> None:
    counts = RequestCounts()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    with pytest.raises(type(error)):
        ask(CountRequests(app, counts))
    assert counts.outcomes["v1", "error"] == 1


def test_every_refusal_of_the_source_has_a_reason() -> None:
    """Where it is literal in the calls that name one."""
    places = {"refuse": 4, "note_refusal": 1, "Problem": 2, "_unavailable": 1}
    noted = set()
    for path in Path(gptj_predictor.server.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                given = node.args[places.get(node.func.id, len(node.args)) :]
                if given and isinstance(given[0], ast.Constant) and given[0].value is not None:
                    noted.add(given[0].value)
    assert {"draining", "not_ready", "out_of_memory", "unauthenticated"} <= noted
    assert {*noted, *Refusal} <= set(REASONS)
