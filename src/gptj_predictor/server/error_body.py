"""The JSON that an error is told in: each protocol has its own, and the path says which it is.

This is the lowest module of the server that knows protocols, because everything answers errors:
the gate and the keys before a request is read, the routes after it.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

#: Where OpenAI's clients ask. ``GET /v1/models`` is V1's too, and has V1's errors.
OPENAI_PATHS = re.compile(r"/openai(/.*)?|/v1/(chat/)?completions/?")

#: Errors about a field begin with its name.
_FIELD = re.compile(r"(?P<field>[a-z_]+)[\w.\[\]]*(: | has )")

#: OpenAI's codes, where the status alone says which.
_CODES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "invalid_api_key",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_supported",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_exceeded",
}

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
MODEL_NOT_FOUND = "model_not_found"


def error_body(path: str, status: int, text: str, code: str | None = None) -> dict[str, Any]:
    """An error's body.

    Args:
        path: Where the client asked.
        status: HTTP's.
        text: What the client is told.
        code: OpenAI's word for it, if the status is not enough.
    """
    if OPENAI_PATHS.fullmatch(path) is None:
        return {"error": text}
    return {"error": openai_error(status, text, code)}


def openai_error(status: int, text: str, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object; see :func:`error_body`."""
    field = None
    if code == MODEL_NOT_FOUND:
        field = "model"
    elif status == HTTPStatus.BAD_REQUEST and (match := _FIELD.match(text)):
        field = match["field"]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = "server_error"
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "requests"
    else:
        kind = "invalid_request_error"
    return {"message": text, "type": kind, "param": field, "code": code or _CODES.get(status)}
