"""Who asks: an API key, or an address that a trusted proxy may have forwarded."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

#: In a request's scope: the caller's name if a key was found.
CALLER = "gptj_predictor.caller"

#: In a request's scope: address and port of the socket's other end.
_PEER = "gptj_predictor.peer"

FORWARDED_FOR = b"x-forwarded-for"

#: Bytes of all ``X-Forwarded-For`` headers of a request that are looked at: more than a hundred
#: proxies. A caller can write any number of them.
MAX_FORWARDED_BYTES = 4096

UNKNOWN = "unknown"


def caller_of(scope: Scope) -> str:
    """Who asks, for fairness and for the log.

    Returns:
        ``key:`` and the first 8 hexadecimal digits of the key's SHA-256, else the address without
        its port, else ``unknown``.
    """
    key = scope.get(CALLER)
    if key is not None:
        return str(key)
    client = scope.get("client")
    return str(client[0]) if client and client[0] else UNKNOWN


class ForwardedFor:
    """Takes the caller's address from ``X-Forwarded-For``, if the socket's other end is trusted.

    uvicorn's middleware takes the last entry that is not a trusted proxy itself. It takes any text.
    Here the socket's address stays where that text is no address, so that a caller cannot give
    itself names without end.
    """

    def __init__(self, app: ASGIApp, proxies: Sequence[str]) -> None:
        """Wrap an application.

        Args:
            app: What is wrapped.
            proxies: Addresses and networks that are trusted.
        """
        self._app = app
        self._forwarded: Any = ProxyHeadersMiddleware(cast("Any", self._checked), list(proxies))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_PEER] = scope.get("client")
        if sum(len(v) for k, v in scope["headers"] if k == FORWARDED_FOR) <= MAX_FORWARDED_BYTES:
            await self._forwarded(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer, client = scope[_PEER], scope.get("client")
        if client is not None and client != peer:
            address = _address(client[0])
            scope["client"] = peer if address is None else (address, client[1])
        await self._app(scope, receive, send)


def _address(text: str) -> str | None:
    """An IP address in its usual spelling; ``None`` if the text is none.

    One with a zone (``fe80::1%eth0``) is none: a zone may be any text.
    """
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
