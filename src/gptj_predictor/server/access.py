"""Who may ask: every call needs an API key but the probes, where keys are set."""

from __future__ import annotations

import re
from dataclasses import dataclass

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

    def guard(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application: first find the caller's address, then its key."""
        if self.keys is not None:
            app = RequireKey(app, self.keys, open_metrics=self.open_metrics)
        return ForwardedFor(app, self.proxies) if self.proxies else app


class RequireKey:
    """Answers 401 to a request without a key, before its body is read."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, *, open_metrics: bool) -> None:
        self._app = app
        self._keys = keys
        self._open_metrics = open_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        authorization = header(scope, b"authorization", b"").decode("latin-1")
        caller = self._keys.caller(authorization)
        if caller is not None:
            scope[CALLER] = caller
        elif not self._is_open(scope):
            text = UNKNOWN_KEY if authorization else NO_KEY
            refusal_reason(scope, text)
            note_refusal(scope, "unauthenticated")
            body = error_body(scope["path"], 401, text)
            refusal = JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            return GRPC_PROBES.fullmatch(path) is not None
        return OPEN_PATHS.fullmatch(path) is not None or (self._open_metrics and path == "/metrics")
