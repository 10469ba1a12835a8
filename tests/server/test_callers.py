"""Who asks, behind proxies and without."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from gptj_predictor.server.callers import CALLER, MAX_FORWARDED_BYTES, ForwardedFor, caller_of

PROXIES = ("10.0.0.0/8", "127.0.0.1", "fd00::/8")
PEER = "10.1.2.3"


def caller(*headers: bytes, peer: str = PEER, proxies: tuple[str, ...] = PROXIES) -> str:
    """The caller of a request with these ``X-Forwarded-For`` headers."""
    found = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append(caller_of(scope))

    async def nothing(*_: object) -> Any:
        pytest.fail("nothing is received or sent")

    lines = [(b"host", b"x"), *((b"x-forwarded-for", header) for header in headers)]
    scope = {"type": "http", "client": (peer, 1234), "headers": lines, "scheme": "http"}
    asyncio.run(ForwardedFor(app, proxies)(scope, nothing, nothing))
    [one] = found
    return one


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ([], PEER),
        ([b"203.0.113.7"], "203.0.113.7"),
        ([b"203.0.113.7:5678"], "203.0.113.7"),
        ([b"203.0.113.7, 10.9.9.9"], "203.0.113.7"),
        # What the caller wrote itself stands before what the proxies add.
        ([b"198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        ([b"198.51.100.1", b"203.0.113.7"], "203.0.113.7"),
        ([b"nonsense, 203.0.113.7, 10.9.9.9"], "203.0.113.7"),
        ([b"2001:DB8:0::1"], "2001:db8::1"),
        ([b"[2001:db8::1]:443"], "2001:db8::1"),
        ([b"::ffff:203.0.113.7"], "203.0.113.7"),
        ([b"10.9.9.9, 10.8.8.8"], "10.9.9.9"),  # all are proxies
        # No address: the socket's.
        ([b""], PEER),
        ([b"unknown"], PEER),
        ([b"203.0.113.7, _hidden"], PEER),
        ([b"203.0.113.700"], PEER),
        ([b"fe80::1%" + b"x" * 100], PEER),
        ([b"\xff\xfe, \x00"], PEER),
        ([b"203.0.113.7, " + b"x" * MAX_FORWARDED_BYTES], PEER),
        ([b"203.0.113.7"] * (MAX_FORWARDED_BYTES // 11 + 1), PEER),
    ],
)
def test_behind_proxies(headers: list[bytes], wanted: str) -> None:
    assert caller(*headers) == wanted


@pytest.mark.parametrize("proxies", [(), ("127.0.0.1",), ("10.1.2.0/31",)])
def test_nobody_is_trusted_unasked(proxies: tuple[str, ...]) -> None:
    assert caller(b"203.0.113.7", proxies=proxies) == PEER


@example([b"10.0.0.1:" + b"9" * 4000])
@example([b"[" * 4000])
@example([b"::%"])
@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"10.1.1.1", b"::1%", b"1.2.3.4:"])))
def test_every_header_gives_an_address(headers: list[bytes]) -> None:
    address = ipaddress.ip_address(caller(*headers))
    assert len(str(address)) <= 39
    assert "%" not in str(address)


def test_the_longest_header_takes_no_time() -> None:
    """All of it proxies, each another one."""
    entries = [f"10.{n // 256}.{n % 256}.1" for n in range(1000)]
    header = ", ".join(entries)[:MAX_FORWARDED_BYTES].encode()
    started = time.perf_counter()
    for _ in range(10):
        caller(header)
    assert (time.perf_counter() - started) / 10 < 0.05


@pytest.mark.parametrize(
    ("scope", "wanted"),
    [
        ({CALLER: "key:01234567", "client": ("1.2.3.4", 5)}, "key:01234567"),
        ({"client": ("1.2.3.4", 5)}, "1.2.3.4"),
        ({"client": None}, "unknown"),
        ({"client": ("", 0)}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_caller_of(scope: Scope, wanted: str) -> None:
    assert caller_of(scope) == wanted
