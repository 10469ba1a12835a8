"""What every error becomes for a client: a status and a text, without a path or a class name."""

from __future__ import annotations

from dataclasses import dataclass

from grpc_interceptor.exceptions import NotFound, PermissionDenied, Unimplemented
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
from gptj_predictor.server.error_body import (
    CONTEXT_LENGTH_EXCEEDED,
    MODEL_NOT_FOUND,
    error_body,
)
from gptj_predictor.server.generation_call import (
    EndedEarlyError,
    OutOfMemoryError,
    PromptTooLongError,
)
from gptj_predictor.server.middleware import RETRY_AFTER_SECONDS, note_refusal, refusal_reason

_STATUS = {
    InvalidInput: 400,
    PermissionDenied: 403,
    NotFound: 404,
    Unimplemented: 501,
}


class RepositoryClosedError(PermissionDenied):
    """Load and unload calls are refused, or anyone could unload the model."""

    def __init__(self) -> None:
        super().__init__("this server does not load or unload models on request")

    def __str__(self) -> str:
        return str(self.details)


@dataclass(frozen=True)
class Problem:
    """An error as a client is told of it.

    Attributes:
        status: HTTP's.
        text: One line.
        refusal: Its kind in one word, for whoever counts; see ``note_refusal``.
        retry_after: Seconds until another try may do; ``None`` if none will.
        code: OpenAI's word for it, where the status is not enough.
    """

    status: int
    text: str
    refusal: str | None = None
    retry_after: int | None = None
    code: str | None = None


def problem_of(error: Exception) -> Problem:
    """What a client is told of an exception that a call has raised.

    Raises:
        ClientDisconnect: there is nobody to tell.
    """
    text = str(error)
    match error:
        case ClientDisconnect() | EndedEarlyError(reason=FinishReason.CANCELLED):
            raise ClientDisconnect from error
        case EndedEarlyError(reason=FinishReason.DEADLINE):
            text = "the request's time was over before its first token"
            problem = Problem(504, text, "deadline")
        case EndedEarlyError():
            problem = _unavailable("the server stops; the request had not begun", "draining")
        case EngineDeadError():
            problem = _unavailable("the engine has stopped; the server needs a restart", None)
        case OutOfMemoryError():
            text = "the device ran out of memory; a shorter request may fit"
            problem = _unavailable(text, "out_of_memory")
        case QueueFullError():
            problem = Problem(429, text, error.refusal, error.retry_after)
        case PromptTooLongError():
            problem = Problem(400, text, code=CONTEXT_LENGTH_EXCEEDED)
        case ModelNotFound():
            problem = Problem(404, text, code=MODEL_NOT_FOUND)
        case ModelNotReady() | ServerNotLive() | ServerNotReady():
            problem = _unavailable(text, "not_ready")
        case _:
            status = next((_STATUS[kind] for kind in _STATUS if isinstance(error, kind)), 500)
            unknown = "internal error; the server's log has the details"
            problem = Problem(status, unknown if status == 500 else text)
    return problem


def _unavailable(text: str, refusal: str | None) -> Problem:
    return Problem(503, text, refusal, RETRY_AFTER_SECONDS)


#: The errors that are answered where they are raised; any other is one inside the server, which
#: ``RequestLog`` is to see too.
KNOWN = (
    *_STATUS,
    *(ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady),
    *(EngineDeadError, QueueFullError, OutOfMemoryError, EndedEarlyError),
)


def add_error_handlers(app: Starlette) -> None:
    """Answer every exception that a route may raise."""
    for kind in KNOWN:
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(ClientDisconnect, _answer)
    app.add_exception_handler(Exception, _answer)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    problem = problem_of(error)
    if problem.refusal is not None:
        note_refusal(request.scope, problem.refusal)
    headers = {} if problem.retry_after is None else {"Retry-After": str(problem.retry_after)}
    return _response(request, problem.status, problem.text, headers, problem.code)


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404 and detail == "Not Found":  # the router's own
        detail = f"no such route: {request.method} {request.url.path[:200]}"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = f"{request.method} is not allowed here; use {allowed}"
    return _response(request, error.status_code, detail, dict(error.headers or {}))


def _response(
    request: Request, status: int, text: str, headers: dict[str, str], code: str | None = None
) -> JSONResponse:
    refusal_reason(request.scope, text)
    body = error_body(request.url.path, status, text, code)
    return JSONResponse(body, status_code=status, headers=headers)
