"""The HTTP application: all routes, and an answer to every error."""

from __future__ import annotations

import fastapi
from kserve.errors import ServerNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import metrics_handler
from starlette.responses import PlainTextResponse

from gptj_predictor import __version__
from gptj_predictor.server.access import Access
from gptj_predictor.server.errors import add_error_handlers
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.routes.openai import openai_routes
from gptj_predictor.server.routes.openapi import DescribedApp, errors
from gptj_predictor.server.routes.tokens import token_routes
from gptj_predictor.server.routes.v1 import v1_routes
from gptj_predictor.server.routes.v2 import v2_routes

EVERYONE = Access()


def create_app(
    dataplane: DataPlane,
    repository: ModelRepositoryExtension,
    predictor: GPTJPredictor,
    *,
    docs: bool,
    access: Access = EVERYONE,
) -> fastapi.FastAPI:
    """The application, without what wraps it (see ``middleware``).

    Args:
        dataplane: Answers what kserve's own routes ask.
        repository: Answers load and unload calls.
        predictor: The one model.
        docs: Whether ``/docs`` shows the OpenAPI document.
        access: Who may ask, for that document; ``Access.guard`` sees to it.
    """
    app = DescribedApp(
        access,
        title="gptj-predictor",
        version=__version__,
        docs_url="/docs" if docs else None,
        redoc_url=None,
        # Its own would start by variables, and end the server where these cannot be followed.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )

    async def health() -> dict[str, str]:
        if not await dataplane.ready():
            raise ServerNotReady
        return {"status": "ready"}

    app.add_api_route("/", dataplane.live, methods=["GET"], responses=errors(503))
    app.add_api_route("/health", health, methods=["GET"], responses=errors(503))
    app.add_api_route(
        "/metrics",
        metrics_handler,
        methods=["GET"],
        response_class=PlainTextResponse,
        responses={200: {"content": {"application/openmetrics-text": {}}}},
    )
    app.include_router(v1_routes(dataplane, predictor))
    app.include_router(openai_routes(dataplane, predictor))
    app.include_router(token_routes(predictor))
    app.include_router(v2_routes(dataplane, repository, predictor))
    add_error_handlers(app)
    return app
