"""The Open Inference Protocol's routes, under ``/v2``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.v2_datamodels import (
    ListModelsResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from kserve.protocol.rest.v2_endpoints import V2Endpoints

from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.protocols.generate import (
    GenerateEvent,
    GenerateRequest,
    GenerateResponse,
    generate_events,
    generate_response,
    generate_schema,
    parse_generate,
)
from gptj_predictor.server.protocols.infer import InferRequest, check_model
from gptj_predictor.server.protocols.infer_rest import (
    BINARY_ANSWER,
    DESCRIPTION,
    LENGTH_HEADER,
    InferResponse,
    infer_response,
    infer_schema,
    parse_infer,
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

_MODEL = "/models/{model_name}"

#: Short requests, for the document.
INFER_EXAMPLE = {
    "inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["The secret is to"]}],
    "parameters": {"max_new_tokens": 12},
}
GENERATE_EXAMPLE = {"text_input": "The secret is to", "parameters": {"max_tokens": 12}}

#: A short stream, for the document.
STREAMED = """data: {"model_name":"gpt-j","model_version":"1","text_output":" learn","done":false}

data: {"model_name":"gpt-j","model_version":"1","text_output":"","done":true}

"""

#: A model's routes are there a second time with its version.
_PLACES = (_MODEL, f"{_MODEL}/versions/{{model_version}}")


def v2_routes(
    dataplane: DataPlane, repository: ModelRepositoryExtension, predictor: GPTJPredictor
) -> APIRouter:
    """Health and metadata, which kserve answers, and requests for texts."""
    v2 = V2Endpoints(dataplane, repository)
    router = APIRouter(prefix="/v2", tags=["V2"])
    for path, endpoint, response in (
        ("", v2.metadata, ServerMetadataResponse),
        ("/health/live", v2.live, ServerLiveResponse),
        ("/health/ready", v2.ready, ServerReadyResponse),
        ("/models", v2.models, ListModelsResponse),
    ):
        router.add_api_route(path, endpoint, methods=["GET"], response_model=response)
    for call in (v2.load, v2.unload):
        router.add_api_route(
            f"/repository{_MODEL}/{call.__name__}",
            call,
            methods=["POST"],
            responses=errors(403),
        )

    async def model_metadata(model_name: str, model_version: str = "") -> ModelMetadataResponse:
        check_model(model_name, model_version, predictor.name)
        return await v2.model_metadata(model_name)

    async def model_ready(model_name: str, model_version: str = "") -> ModelReadyResponse:
        check_model(model_name, model_version, predictor.name)
        return await v2.model_ready(model_name)

    async def infer(request: Request, model_name: str, model_version: str = "") -> Response:
        check_model(model_name, model_version, predictor.name)
        header = request.headers.get(LENGTH_HEADER)
        wire = WireFormat[InferRequest](
            parse=lambda body: parse_infer(
                body, header, model_name, predictor.defaults, predictor.limits
            ),
            answer=lambda asked, texts: infer_response(asked, texts, model_name),
        )
        return await generate(request, dataplane, predictor, wire)

    def text_format(*, stream: bool) -> WireFormat[GenerateRequest]:
        name = predictor.name
        return WireFormat(
            parse=lambda body: parse_generate(
                body, predictor.defaults, predictor.limits, stream=stream
            ),
            answer=lambda asked, texts: JSONResponse(generate_response(asked, texts, name)),
            events=lambda asked, generation: generate_events(asked, generation, name),
        )

    at_once, streamed = text_format(stream=False), text_format(stream=True)

    async def generate_text(request: Request, model_name: str, model_version: str = "") -> Response:
        check_model(model_name, model_version, predictor.name)
        return await generate(request, dataplane, predictor, at_once)

    async def generate_stream(
        request: Request, model_name: str, model_version: str = ""
    ) -> Response:
        check_model(model_name, model_version, predictor.name)
        return await generate(request, dataplane, predictor, streamed)

    limits, defaults = predictor.limits, predictor.defaults
    infer_body = json_body(infer_schema(limits, defaults), INFER_EXAMPLE)
    text_body = json_body(generate_schema(limits, defaults), GENERATE_EXAMPLE)
    streamed_events = event_stream(
        inline(GenerateEvent), reference(ErrorResponse), example=STREAMED
    )
    for place in _PLACES:
        shown = place is _MODEL
        for path, ask, answer in (
            ("", model_metadata, ModelMetadataResponse),
            ("/ready", model_ready, ModelReadyResponse),
        ):
            router.add_api_route(
                f"{place}{path}",
                ask,
                methods=["GET"],
                response_model=answer,
                include_in_schema=shown,
            )
        router.add_api_route(
            f"{place}/infer",
            infer,
            methods=["POST"],
            description=DESCRIPTION,
            response_model=InferResponse,
            responses={200: BINARY_ANSWER, **errors(*TEXT_STATUSES)},
            openapi_extra=infer_body,
            include_in_schema=shown,
        )
        router.add_api_route(
            f"{place}/generate",
            generate_text,
            methods=["POST"],
            response_model=GenerateResponse,
            responses=errors(*TEXT_STATUSES),
            openapi_extra=text_body,
            include_in_schema=shown,
        )
        router.add_api_route(
            f"{place}/generate_stream",
            generate_stream,
            methods=["POST"],
            response_class=Response,  # else it would say that it answers JSON
            responses={200: {"content": streamed_events}, **errors(*TEXT_STATUSES)},
            openapi_extra=text_body,
            include_in_schema=shown,
        )
    return router
