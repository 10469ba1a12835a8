"""Who may ask: every call needs an API key but the probes, where keys are set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gptj_predictor.server.api_keys import ApiKeys
from gptj_predictor.server.callers import CALLER, ForwardedFor
from gptj_predictor.server.error_body import error_body
from gptj_predictor.server.middleware import header, note_refusal, refusal_reason
from gptj_predictor.server.protocol import GRPC_PROBES

#: Probes are answered without a key: a kubelet has none.
OPEN_PATHS = re.compile(r"/|/health|/v2/health/[^/]+|/v1/models/[^/:]+|/v2/models/[^/]+/ready")

NO_KEY = "no API key; send the header Authorization: Bearer KEY"
UNKNOWN_KEY = "the API key is unknown"


@dataclass(frozen=True)
class Access:
    """Who may ask, on every protocol; without keys everyone may.

    Attributes:
        keys: The keys.
        open_metrics: Whether ``/metrics`` is answered without one.
        proxies: Addresses and networks whose ``X-Forwarded-For`` is believed.
    """

    keys: ApiKeys | None = None
    open_metrics: bool = False
    proxies: tuple[str, ...] = ()

    def identify(self, scope: Scope) -> bool:
        """Find a request's caller: first its address, then its key; see ``caller_of``.

        Once more changes nothing.

        Returns:
            Whether it has a key, or needs none whatever it asks for.
        """
        if self._forwarded is not None:
            self._forwarded(scope)
        if self.keys is None:
            return True
        caller = self.keys.caller(_authorization(scope))
        if caller is None:
            return False
        scope[CALLER] = caller
        return True

    def is_open(self, scope: Scope) -> bool:
        """Whether a request is answered without a key."""
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            return GRPC_PROBES.fullmatch(path) is not None
        return OPEN_PATHS.fullmatch(path) is not None or (self.open_metrics and path == "/metrics")

    def guard(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application."""
        return Guard(app, self) if self.proxies or self.keys is not None else app

    @cached_property
    def _forwarded(self) -> ForwardedFor | None:
        return ForwardedFor(self.proxies) if self.proxies else None


class Guard:
    """Answers 401 to a request without a key, before its body is read."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] != "http" or self._access.identify(scope) or self._access.is_open(scope):
            await self._app(scope, receive, send)
            return
        text = UNKNOWN_KEY if _authorization(scope) else NO_KEY
        refusal_reason(scope, text)
        note_refusal(scope, "unauthenticated")
        body = error_body(scope["path"], 401, text)
        refusal = JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)


def _authorization(scope: Scope) -> str:
    return header(scope, b"authorization", b"").decode("latin-1")
