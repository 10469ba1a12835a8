"""The V1 routes, under ``/v1``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from kserve.errors import ModelNotReady
from kserve.protocol.dataplane import DataPlane
from starlette.exceptions import HTTPException

from gptj_predictor.server.middleware import note_texts
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.protocols.v1 import (
    ErrorResponse,
    V1Response,
    format_response,
    openapi_schema,
    parse_request,
)


def v1_routes(dataplane: DataPlane, predictor: GPTJPredictor) -> APIRouter:
    """Models, their readiness and their predictions."""
    router = APIRouter(prefix="/v1", tags=["V1"])

    @router.get("/models")
    async def models() -> dict[str, list[str]]:
        return {"models": [predictor.name]}

    async def predict(model_name: str, request: Request) -> JSONResponse:
        if not await dataplane.model_ready(model_name, True):
            raise ModelNotReady(model_name)
        generation = parse_request(await request.body(), predictor.defaults, predictor.limits)
        note_texts(request.scope, generation.prompts)
        texts, _ = await dataplane.infer(model_name, generation, dict(request.headers))
        note_texts(request.scope, generation.prompts, texts)
        return JSONResponse(format_response(texts))

    async def predict_with_get(model_name: str) -> None:
        raise HTTPException(405, headers={"Allow": "POST"})

    router.add_api_route(
        "/models/{model_name}:predict",
        predict,
        methods=["POST"],
        response_model=V1Response,
        responses={status: {"model": ErrorResponse} for status in (400, 404, 413, 415, 500, 503)},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": openapi_schema(predictor.limits)}},
            }
        },
    )
    # Without it, GET on the line above would be a question for a model called NAME:predict.
    router.add_api_route(
        "/models/{model_name}:predict", predict_with_get, methods=["GET"], include_in_schema=False
    )

    @router.post("/models/{call}", include_in_schema=False)
    async def unknown_call(call: str) -> None:
        # The tutorial's own few-shot queries end in ":predic".
        raise HTTPException(404, f"no such call: POST /v1/models/{call[:200]}; use NAME:predict")

    @router.get("/models/{model_name}")
    async def model_ready(model_name: str) -> dict[str, str | bool]:
        if not await dataplane.model_ready(model_name):
            raise ModelNotReady(model_name)
        return {"name": model_name, "ready": True}

    return router
