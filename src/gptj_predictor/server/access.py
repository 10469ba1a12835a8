"""Who may ask: every call needs an API key but the probes, where keys are set."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gptj_predictor.server.api_keys import ApiKeys
from gptj_predictor.server.callers import CALLER, ForwardedFor
from gptj_predictor.server.error_body import error_body
from gptj_predictor.server.middleware import header, note_refusal, refusal_reason

logger = logging.getLogger(__name__)

#: Probes are answered without a key: a kubelet has none.
OPEN_PATHS = re.compile(r"/|/health|/v2/health/[^/]+|/v1/models/[^/:]+|/v2/models/[^/]+/ready")
OPEN_METHODS = frozenset(
    f"/inference.GRPCInferenceService/{name}"
    for name in ("ServerLive", "ServerReady", "ModelReady")
)

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

    def interceptors(self) -> tuple[grpc.aio.ServerInterceptor, ...]:
        """The same for gRPC."""
        return () if self.keys is None else (KeyInterceptor(self.keys),)


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
        if scope["method"] not in ("GET", "HEAD"):
            return False
        path = scope["path"]
        return OPEN_PATHS.fullmatch(path) is not None or (self._open_metrics and path == "/metrics")


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Answers UNAUTHENTICATED to a gRPC call without a key, before its message is read."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Handle one call; see gRPC."""
        method = handler_call_details.method
        authorization = _authorization(handler_call_details)
        if method in OPEN_METHODS or self._keys.caller(authorization) is not None:
            return await continuation(handler_call_details)
        text = UNKNOWN_KEY if authorization else NO_KEY
        logger.warning("gRPC %r UNAUTHENTICATED error=%r", method[:200], text)

        async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)

        # A handler of streamed requests is called before there is a message.
        return grpc.stream_unary_rpc_method_handler(refuse)


def _authorization(details: grpc.HandlerCallDetails) -> str:
    values = [value for key, value in details.invocation_metadata or () if key == "authorization"]
    return values[-1] if values and isinstance(values[-1], str) else ""
