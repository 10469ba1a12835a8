"""The OpenAPI document: the words that routes share, and what the middleware answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fastapi
from pydantic import BaseModel, Field

from gptj_predictor.server.access import OPEN_PATHS, Access

#: What each status means, on every route that has it.
_MEANINGS = {
    400: "The request is not allowed; the error names the field, its value and what is allowed.",
    401: "No API key, or an unknown one.",
    403: "Not allowed over the network.",
    404: "No such model.",
    413: "The body is over the limit.",
    415: "The body is compressed.",
    429: "The queue is full, or the request's time would be over before its turn.",
    431: "Too many bytes beside the body.",
    500: "An error in the server; its log has the details.",
    503: "Not loaded yet, stopping, out of memory, or the engine has stopped.",
    504: "The request's time was over before the first token.",
}

#: After these another try may do.
_PASSING = (429, 503)

#: What a request for texts may get.
TEXT_STATUSES = (400, 404, 413, 415, 429, 500, 503, 504)

#: What the way to any route may answer, and to one with a body.
_EVERYWHERE = (431, 500)
_WITH_BODY = (413, 415, 503)
_METHODS_WITH_BODY = ("post", "put", "patch")

_REQUEST_ID = {
    "description": "The request's id, which the server's log has too: the caller's, or a new one.",
    "required": True,
    "schema": {"type": "string"},
}
_RETRY_AFTER = {
    "description": "Seconds until another try may do.",
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
}
_AUTHENTICATE = {"required": True, "schema": {"const": "Bearer"}}

_OWN_REQUEST_ID = {
    "name": "x-request-id",
    "in": "header",
    "description": "An id for the answer and the log: 1 to 128 printable ASCII characters without "
    "spaces. Others are passed over.",
    "schema": {"type": "string"},
}
_TIMEOUT = {
    "name": "x-request-timeout",
    "in": "header",
    "description": "Seconds that the request may take, within the server's own limit.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}

_API_KEY = {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"}

#: Where the document has its schemas.
REFERENCES = "#/components/schemas/{model}"

Operation = dict[str, Any]


class ErrorResponse(BaseModel):
    """Any error."""

    error: str = Field(description="What is wrong, in a line.")


def errors(*statuses: int, model: type[BaseModel] = ErrorResponse) -> dict[int | str, Any]:
    """What a route says of its errors.

    Args:
        statuses: Those that it may answer.
        model: The shape of their bodies.
    """
    return {status: {"model": model, "description": _MEANINGS[status]} for status in statuses}


def json_body(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """What a route says of a body that it reads itself.

    Args:
        schema: Its own, in one piece.
        example: A short one.
    """
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


def event_stream(*events: dict[str, Any], example: str, end: str | None = None) -> dict[str, Any]:
    """What a route says of a streamed answer.

    Args:
        events: Schemas of its events' data, which is JSON.
        example: A short one.
        end: What the last event has instead.
    """
    data: dict[str, Any] = {
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": list(events)},
    }
    if end is not None:
        data = {"anyOf": [{"const": end}, data]}
    item = {
        "type": "object",
        "properties": {"data": {"type": "string"} | data},
        "required": ["data"],
    }
    return {"text/event-stream": {"itemSchema": item, "example": example}}


def inline(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a model that no route answers; what it refers to is in the document."""
    schema = model.model_json_schema(ref_template=REFERENCES)
    schema.pop("$defs", None)
    return schema


def reference(model: type[BaseModel]) -> dict[str, str]:
    """To the schema of a model that is in the document."""
    return {"$ref": REFERENCES.format(model=model.__name__)}


class DescribedApp(fastapi.FastAPI):
    """An application whose document has also what the middleware answers."""

    def __init__(self, access: Access, **settings: Any) -> None:
        """Make it.

        Args:
            access: Who may ask.
            settings: FastAPI's.
        """
        super().__init__(**settings)
        self._access = access

    def openapi(self) -> dict[str, Any]:
        """The document."""
        if self.openapi_schema is None:
            document = super().openapi()
            if self._access.keys is not None:
                document["components"]["securitySchemes"] = {"ApiKey": _API_KEY}
            for path, method, operation in _operations(document):
                self._complete(path, method, operation)
            for name in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(name, None)
        assert self.openapi_schema is not None
        return self.openapi_schema

    def _complete(self, path: str, method: str, operation: Operation) -> None:
        responses = operation["responses"]
        # A name in the path is always one for FastAPI; a body is read by the route.
        responses.pop("422", None)
        statuses = [*_EVERYWHERE]
        if method in _METHODS_WITH_BODY:
            statuses += _WITH_BODY
        if "{model_name}" in path:
            statuses += [404, 503]
        if self._access.keys is not None and not self._is_open(method, path):
            statuses.append(401)
            operation["security"] = [{"ApiKey": []}]
        body = _body_of_errors(responses)
        for status in statuses:
            added = {"description": _MEANINGS[status], "content": body}
            responses.setdefault(str(status), added)
        parameters = operation.setdefault("parameters", [])
        parameters.append(_OWN_REQUEST_ID)
        if "504" in responses:
            parameters.append(_TIMEOUT)
        for status, response in responses.items():
            response["headers"] = {**response.get("headers", {}), **_headers(int(status))}

    def _is_open(self, method: str, path: str) -> bool:
        if method != "get":
            return False
        if path == "/metrics":
            return self._access.open_metrics
        return OPEN_PATHS.fullmatch(path) is not None


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield path, method, operation


def _body_of_errors(responses: dict[str, Any]) -> dict[str, Any]:
    """All errors of a route look alike."""
    for status, response in responses.items():
        if int(status) >= 400 and "content" in response:
            body: dict[str, Any] = response["content"]
            return body
    return {"application/json": {"schema": reference(ErrorResponse)}}


def _headers(status: int) -> dict[str, Any]:
    headers = {"x-request-id": _REQUEST_ID}
    if status in _PASSING:
        headers["Retry-After"] = _RETRY_AFTER
    if status == 401:
        headers["WWW-Authenticate"] = _AUTHENTICATE
    return headers
