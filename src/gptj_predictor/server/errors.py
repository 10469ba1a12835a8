"""Every error as ``{"error": "..."}``, without a path, a traceback or a class name."""

from __future__ import annotations

from grpc_interceptor.exceptions import PermissionDenied, Unimplemented
from kserve.errors import (
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ServerNotLive,
    ServerNotReady,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from gptj_predictor.engine.request import EngineDeadError, FinishReason
from gptj_predictor.server.admission import QueueFullError
from gptj_predictor.server.generation import EndedEarlyError, OutOfMemoryError
from gptj_predictor.server.middleware import RETRY_AFTER_SECONDS, note_refusal, refusal_reason

_STATUS = {
    InvalidInput: 400,
    PermissionDenied: 403,
    ModelNotFound: 404,
    Unimplemented: 501,
    ModelNotReady: 503,
    ServerNotLive: 503,
    ServerNotReady: 503,
}


class RepositoryClosedError(PermissionDenied):
    """Load and unload calls are refused, or anyone could unload the model."""

    def __init__(self) -> None:
        super().__init__("this server does not load or unload models on request")

    def __str__(self) -> str:
        return str(self.details)


def add_error_handlers(app: Starlette) -> None:
    """Answer every exception that a route may raise."""
    for kind in _STATUS:
        app.add_exception_handler(kind, _answer_known)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(EngineDeadError, _answer_engine_dead)
    app.add_exception_handler(QueueFullError, _answer_queue_full)
    app.add_exception_handler(OutOfMemoryError, _answer_out_of_memory)
    app.add_exception_handler(EndedEarlyError, _answer_ended_early)
    app.add_exception_handler(ClientDisconnect, _pass_on)
    app.add_exception_handler(Exception, _answer_unknown)


async def _answer_known(request: Request, error: Exception) -> JSONResponse:
    status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    if status == 503:
        note_refusal(request.scope, "not_ready")
    return _response(request, status, str(error))


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404 and detail == "Not Found":  # the router's own
        detail = f"no such route: {request.method} {request.url.path[:200]}"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = f"{request.method} is not allowed here; use {allowed}"
    return _response(request, error.status_code, detail, dict(error.headers or {}))


async def _answer_engine_dead(request: Request, error: Exception) -> JSONResponse:
    return _response(request, 503, "the engine has stopped; the server needs a restart")


async def _answer_queue_full(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, QueueFullError)
    note_refusal(request.scope, error.refusal)
    return _response(request, 429, str(error), {"Retry-After": str(error.retry_after)})


async def _answer_out_of_memory(request: Request, error: Exception) -> JSONResponse:
    note_refusal(request.scope, "out_of_memory")
    return _response(request, 503, "the device ran out of memory; a shorter request may fit")


async def _answer_ended_early(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, EndedEarlyError)
    if error.reason is FinishReason.CANCELLED:
        raise ClientDisconnect from error
    if error.reason is FinishReason.DEADLINE:
        note_refusal(request.scope, "deadline")
        return _response(request, 504, "the request's time was over before its first token")
    note_refusal(request.scope, "draining")
    return _response(request, 503, "the server stops; the request had not begun")


async def _pass_on(request: Request, error: Exception) -> JSONResponse:
    raise error  # there is nobody left to answer; RequestLog notes it


async def _answer_unknown(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ClientDisconnect):  # _pass_on's, a layer further out
        raise error
    return _response(request, 500, "internal error; the server's log has the details")


def _response(
    request: Request, status: int, text: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    headers = headers or {}
    if status == 503:
        headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    refusal_reason(request.scope, text)
    return JSONResponse({"error": text}, status_code=status, headers=headers)
