"""The V1 routes, under ``/v1``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from kserve.errors import ModelNotReady
from kserve.protocol.dataplane import DataPlane
from starlette.exceptions import HTTPException

from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.protocols.v1 import (
    ErrorResponse,
    V1Response,
    events,
    format_response,
    openapi_schema,
    parse_request,
)
from gptj_predictor.server.routes.generate import WireFormat, generate

#: Of errors; those that only bad HTTP gets are left out.
STATUSES = (400, 404, 413, 415, 429, 500, 503, 504)


def v1_routes(dataplane: DataPlane, predictor: GPTJPredictor) -> APIRouter:
    """Models, their readiness and their predictions."""
    router = APIRouter(prefix="/v1", tags=["V1"])
    wire = WireFormat(
        parse=lambda body: parse_request(body, predictor.defaults, predictor.limits),
        answer=lambda request, texts: JSONResponse(format_response(request, texts)),
        events=events,
    )

    async def predict(model_name: str, request: Request) -> Response:
        dataplane.get_model_from_registry(model_name)
        return await generate(request, dataplane, predictor, wire)

    async def predict_with_get(model_name: str) -> None:
        raise HTTPException(405, headers={"Allow": "POST"})

    router.add_api_route(
        "/models/{model_name}:predict",
        predict,
        methods=["POST"],
        response_model=V1Response,
        responses={status: {"model": ErrorResponse} for status in STATUSES},
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
