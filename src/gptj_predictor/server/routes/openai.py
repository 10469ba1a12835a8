"""OpenAI's routes, under ``/openai/v1`` and, as far as V1 has no other use for them, ``/v1``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from kserve.errors import ModelNotFound
from kserve.protocol.dataplane import DataPlane

from gptj_predictor.server.middleware import request_id_of
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.protocols.json_bodies import cut
from gptj_predictor.server.protocols.openai import (
    CompletionRequest,
    Head,
    error_event,
    events,
    format_response,
    parse_request,
)
from gptj_predictor.server.protocols.openai_schema import (
    Completion,
    ModelCard,
    ModelList,
    OpenAIErrorResponse,
    completion_schema,
)
from gptj_predictor.server.routes.generate import WireFormat, generate

#: Of errors; those that only bad HTTP gets are left out.
STATUSES = (400, 404, 413, 415, 429, 500, 503, 504)

PREFIXES = ("/openai/v1", "/v1")


def openai_routes(dataplane: DataPlane, predictor: GPTJPredictor) -> APIRouter:
    """The model and its completions."""
    router = APIRouter(tags=["OpenAI"])
    card = ModelCard(
        id=predictor.name, created=predictor.created, max_model_len=predictor.limits.context
    )
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": OpenAIErrorResponse} for status in STATUSES
    }

    async def models() -> ModelList:
        return ModelList(models=[predictor.name], data=[card])

    async def model(model_id: str) -> ModelCard:
        _check_model(predictor, model_id)
        return card

    async def completions(request: Request) -> Response:
        head = _head(request, predictor)

        def parse(body: bytes) -> CompletionRequest:
            asked = parse_request(body, predictor.limits, head)
            _check_model(predictor, asked.model)
            return asked

        wire = WireFormat(
            parse=parse,
            answer=lambda asked, texts: JSONResponse(format_response(asked, texts)),
            events=events,
            error_event=error_event,
        )
        return await generate(request, dataplane, predictor, wire)

    for prefix in PREFIXES:
        router.add_api_route(f"{prefix}/models", models, methods=["GET"])
        router.add_api_route(
            f"{prefix}/completions",
            completions,
            methods=["POST"],
            response_model=Completion,
            responses=errors,
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": completion_schema(predictor.limits)}
                    },
                }
            },
        )
    # An id may have a slash in it, as ours has on the hub.
    router.add_api_route(
        "/openai/v1/models/{model_id:path}",
        model,
        methods=["GET"],
        responses={404: {"model": OpenAIErrorResponse}},
    )
    return router


def _head(request: Request, predictor: GPTJPredictor) -> Head:
    return Head.of(request_id_of(request.scope), predictor.name, predictor.fingerprint)


def _check_model(predictor: GPTJPredictor, name: str | None) -> None:
    """Leave what is for another model.

    Raises:
        ModelNotFound: it is.
    """
    if name is not None and not predictor.is_called(name):
        raise ModelNotFound(cut(name))
