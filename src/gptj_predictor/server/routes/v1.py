"""The V1 routes, under ``/v1``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from kserve.errors import ModelNotReady
from kserve.protocol.dataplane import DataPlane
from starlette.exceptions import HTTPException

from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.protocols.v1 import (
    V1Piece,
    V1Response,
    events,
    format_response,
    openapi_schema,
    parse_request,
)
from gptj_predictor.server.routes.generate import WireFormat, generate
from gptj_predictor.server.routes.openapi import (
    TEXT_STATUSES,
    ErrorResponse,
    errors,
    event_stream,
    inline,
    json_body,
    reference,
)

#: A short request, for the document.
EXAMPLE = {
    "instances": ["The secret to a happy life is to"],
    "parameters": {"max_new_tokens": 12},
}

#: A short stream, for the document.
STREAMED = """data: {"instance":0,"sequence":0,"text":" learn"}

data: {"predictions":[{"generated_text":"The secret is to learn"}]}

"""


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

    streamed = event_stream(
        inline(V1Piece),
        reference(V1Response),
        reference(ErrorResponse),
        example=STREAMED,
    )
    router.add_api_route(
        "/models/{model_name}:predict",
        predict,
        methods=["POST"],
        response_model=V1Response,
        responses={200: {"content": streamed}, **errors(*TEXT_STATUSES)},
        openapi_extra=json_body(openapi_schema(predictor.limits, predictor.defaults), EXAMPLE),
    )
    # Without it, GET on the line above would be a question for a model called NAME:predict.
    router.add_api_route(
        "/models/{model_name}:predict", predict_with_get, methods=["GET"], include_in_schema=False
    )

    # Before the next: what is allowed here is GET.
    @router.get("/models/{model_name}")
    async def model_ready(model_name: str) -> dict[str, str | bool]:
        if not await dataplane.model_ready(model_name):
            raise ModelNotReady(model_name)
        return {"name": model_name, "ready": True}

    @router.post("/models/{call}", include_in_schema=False)
    async def unknown_call(call: str) -> None:
        # The tutorial's own few-shot queries end in ":predic".
        raise HTTPException(404, f"no such call: POST /v1/models/{call[:200]}; use NAME:predict")

    return router
