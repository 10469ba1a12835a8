"""What a browser lets the pages of some origins do, against the real server with keys and TLS."""

from __future__ import annotations

import httpx
import pytest

from tests.support.bad_bodies import body
from tests.support.secrets import ORIGINS, bearer
from tests.support.servers import HttpsServer, RunningServer

pytestmark = pytest.mark.process

STRANGER = "https://evil.example"


def preflight(server: HttpsServer, origin: str, method: str = "POST") -> httpx.Response:
    """What a browser asks before a page's first request, without a key."""
    headers = {
        "origin": origin,
        "access-control-request-method": method,
        "access-control-request-headers": "authorization, content-type, x-request-id",
    }
    with httpx.Client(base_url=server.client.base_url, verify=server.trusted) as browser:
        return browser.options(server.predict_path, headers=headers)


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_preflight_needs_no_key(secured: HttpsServer, origin: str) -> None:
    answer = preflight(secured, origin)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("origin", "method"),
    [(STRANGER, "POST"), ("null", "POST"), (f"{ORIGINS[0]}.evil.example", "POST")],
)
def test_a_stranger_is_told_nothing(secured: HttpsServer, origin: str, method: str) -> None:
    answer = preflight(secured, origin, method)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers
    answer = secured.client.get("/v1/models", headers={"origin": origin})
    assert answer.status_code == 200  # the browser keeps it from the page
    assert "access-control-allow-origin" not in answer.headers


def test_only_methods_that_are_there(secured: HttpsServer) -> None:
    assert preflight(secured, ORIGINS[0], "DELETE").status_code == 400


@pytest.mark.parametrize(
    ("sent", "key", "status"),
    [
        (body(max_new_tokens=2), None, 200),
        (body(top_p=2), None, 400),
        (body(), "wrong", 401),
        ('{"instances": ["' + "a" * 3_000_000 + '"]}', None, 413),
    ],
    ids=["answer", "bad", "no key", "large"],
)
def test_a_page_can_read_every_answer(
    secured: HttpsServer, sent: str, key: str | None, status: int
) -> None:
    headers = {"origin": ORIGINS[0]} | ({} if key is None else bearer(key))
    answer = secured.client.post(secured.predict_path, content=sent, headers=headers)
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == ORIGINS[0]
    assert "Origin" in answer.headers["vary"]
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "retry-after"} == set(exposed)


def test_a_page_can_read_a_stream(secured: HttpsServer) -> None:
    asked = {"instances": ["a"], "parameters": {"max_new_tokens": 5}, "stream": True}
    headers = {"origin": ORIGINS[1]}
    answer = secured.client.post(secured.predict_path, json=asked, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["access-control-allow-origin"] == ORIGINS[1]


def test_off_by_default(server: RunningServer) -> None:
    headers = {"origin": ORIGINS[0], "access-control-request-method": "POST"}
    for answer in (
        server.client.options(server.predict_path, headers=headers),
        server.client.get("/v1/models", headers=headers),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
