"""The V2 routes, under ``/v2``."""

from __future__ import annotations

from fastapi import APIRouter
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


def v2_routes(dataplane: DataPlane, repository: ModelRepositoryExtension) -> APIRouter:
    """kserve's V2 routes except inference, which is not served."""
    v2 = V2Endpoints(dataplane, repository)
    router = APIRouter(prefix="/v2", tags=["V2"])
    name = "/models/{model_name}"
    for path, endpoint, response in (
        ("", v2.metadata, ServerMetadataResponse),
        ("/health/live", v2.live, ServerLiveResponse),
        ("/health/ready", v2.ready, ServerReadyResponse),
        ("/models", v2.models, ListModelsResponse),
        (name, v2.model_metadata, ModelMetadataResponse),
        (f"{name}/ready", v2.model_ready, ModelReadyResponse),
    ):
        router.add_api_route(path, endpoint, methods=["GET"], response_model=response)
    router.add_api_route(f"/repository{name}/load", v2.load, methods=["POST"])
    router.add_api_route(f"/repository{name}/unload", v2.unload, methods=["POST"])
    return router
