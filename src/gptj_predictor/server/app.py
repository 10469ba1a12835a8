"""The server process: kserve's model server with our routes, limits and truth about readiness."""

from __future__ import annotations

import asyncio
import logging
from argparse import Namespace
from typing import Any

import fastapi
import kserve
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from kserve.errors import ModelNotReady, ServerNotLive
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import RESTServer, metrics_handler
from kserve.protocol.rest.v2_datamodels import (
    ListModelsResponse,
    ModelMetadataResponse,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from kserve.protocol.rest.v2_endpoints import V2Endpoints
from starlette.exceptions import HTTPException

from gptj_predictor import __version__
from gptj_predictor.server.errors import RepositoryClosedError, add_error_handlers
from gptj_predictor.server.guard import receive_deadline, request_guard
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.v1 import (
    ErrorResponse,
    V1Request,
    V1Response,
    format_response,
    parse_request,
)

logger = logging.getLogger(__name__)


class PredictorDataPlane(DataPlane):
    """kserve's data plane, except that readiness and liveness are looked up, not assumed."""

    def __init__(self, model_registry: ModelRepository, predictor: GPTJPredictor) -> None:
        super().__init__(model_registry=model_registry)
        self._predictor = predictor

    async def ready(self) -> bool:
        """Whether a request would be answered now."""
        return await self._predictor.healthy()

    async def live(self) -> dict[str, str]:
        """Alive unless the engine has died.

        Raises:
            ServerNotLive: only a restart helps.
        """
        if not self._predictor.alive:
            raise ServerNotLive()
        return {"status": "alive"}


class ClosedRepository(ModelRepositoryExtension):
    """Refuses to load and unload, over REST and gRPC."""

    async def load(self, model_name: str) -> None:
        """Refuse."""
        raise RepositoryClosedError()

    async def unload(self, model_name: str) -> None:
        """Refuse."""
        raise RepositoryClosedError()


def create_app(
    dataplane: DataPlane,
    repository: ModelRepositoryExtension,
    predictor: GPTJPredictor,
    *,
    docs: bool,
) -> fastapi.FastAPI:
    """The HTTP application."""
    app = fastapi.FastAPI(
        title="gptj-predictor",
        version=__version__,
        docs_url="/docs" if docs else None,
        redoc_url=None,
    )
    app.add_api_route("/", dataplane.live, methods=["GET"])
    app.add_api_route("/metrics", metrics_handler, methods=["GET"])
    app.include_router(_v1_routes(dataplane, predictor))
    app.include_router(_v2_routes(dataplane, repository))
    add_error_handlers(app)
    return app


def _v1_routes(dataplane: DataPlane, predictor: GPTJPredictor) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["V1"])

    @router.get("/models")
    async def models() -> dict[str, list[str]]:
        return {"models": [predictor.name]}

    async def predict(model_name: str, request: Request) -> JSONResponse:
        if not await dataplane.model_ready(model_name, True):
            raise ModelNotReady(model_name)
        generation = parse_request(await request.body(), predictor.defaults, predictor.limits)
        texts, _ = await dataplane.infer(model_name, generation, dict(request.headers))
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
                "content": {"application/json": {"schema": V1Request.openapi_schema()}},
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


def _v2_routes(dataplane: DataPlane, repository: ModelRepositoryExtension) -> APIRouter:
    """kserve's V2 routes but inference, which is not served."""
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


class PredictorRESTServer(RESTServer):
    """kserve's REST server around our application instead of its own."""

    def __init__(self, *args: Any, receive_timeout_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.http = receive_deadline(receive_timeout_seconds)

    def create_application(self) -> None:
        """Nothing to add: the application came complete."""

    def stop(self) -> None:
        """Stop accepting, let running requests end within the grace period. Signal-safe."""
        self._server.should_exit = True


class PredictorServer(kserve.ModelServer):
    """kserve's model server; HTTP answers from the start, the model is ready once it is loaded."""

    def __init__(
        self, predictor: GPTJPredictor, flags: Namespace, *, receive_timeout_seconds: float
    ) -> None:
        """Set up; nothing listens yet.

        Args:
            predictor: The one model.
            flags: kserve's own flags, parsed.
            receive_timeout_seconds: Time for a request to arrive whole.
        """
        super().__init__(
            http_port=flags.http_port,
            grpc_port=flags.grpc_port,
            max_threads=flags.max_threads,
            enable_grpc=flags.enable_grpc,
            enable_docs_url=flags.enable_docs_url,
            enable_latency_logging=flags.enable_latency_logging,
            event_loop=flags.event_loop,
            timeout_keep_alive=flags.timeout_keep_alive,
            ssl_certfile=flags.ssl_certfile,
            ssl_keyfile=flags.ssl_keyfile,
        )
        self._predictor = predictor
        self._flags = flags
        self.register_model(predictor)
        predictor.enable_latency_logging = self.enable_latency_logging
        self.dataplane = PredictorDataPlane(self.registered_models, predictor)
        self.model_repository_extension = ClosedRepository(self.registered_models)
        app = create_app(
            self.dataplane,
            self.model_repository_extension,
            predictor,
            docs=self.enable_docs_url,
        )
        self._rest = PredictorRESTServer(
            request_guard(app, predictor.limits.max_body_bytes),
            self.dataplane,
            self.model_repository_extension,
            self.http_port,
            grace_period=self.grace_period,
            event_loop=self.event_loop,
            timeout_keep_alive=self.timeout_keep_alive,
            ssl_certfile=self.ssl_certfile,
            ssl_keyfile=self.ssl_keyfile,
            receive_timeout_seconds=receive_timeout_seconds,
        )

    def run(self) -> None:
        """Serve until a signal ends it.

        Raises:
            Exception: whatever loading the model or binding a port raised; nothing listens then.
        """
        self.register_signal_handler()
        try:
            with asyncio.Runner(loop_factory=self._rest.config.get_loop_factory()) as runner:
                runner.run(self._serve_all())
        except SystemExit as error:  # uvicorn's way to say that it cannot listen, logged by it
            raise OSError(f"cannot listen on HTTP port {self.http_port}") from error

    def stop(self, sig: int) -> None:
        """Begin to stop; called from the signal handler."""
        self._rest.stop()

    async def _serve_all(self) -> None:
        if self.enable_grpc:
            self._grpc_server = GRPCServer(
                self.grpc_port,
                self.dataplane,
                self.model_repository_extension,
                kwargs=vars(self._flags),
                grace_period=self.grace_period,
            )
            self.servers.append(asyncio.create_task(self._grpc_server.start(self.max_threads)))
        self.servers.append(asyncio.create_task(self._predictor.start_engine()))
        http = asyncio.create_task(self._rest.start())
        for task in self.servers:
            task.add_done_callback(self._stop_on_failure)
        try:
            await http
        finally:
            self._predictor.stop_engine()
            if self._grpc_server is not None:
                await self._grpc_server.stop()
        for task in self.servers:
            if task.done():
                task.result()

    def _stop_on_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._rest.stop()
