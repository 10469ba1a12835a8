"""The gRPC server: KServe's services with true statuses, ``grpc.health.v1``, and TLS."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_interceptor.exceptions import NotFound
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from starlette.types import ASGIApp, Scope

from gptj_predictor.server.callers import caller_of
from gptj_predictor.server.grpc_calls import GrpcCalls
from gptj_predictor.server.http_requests import timeout_seconds
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.protocols.infer import check_model
from gptj_predictor.server.protocols.infer_grpc import infer_message, parse_message
from gptj_predictor.server.routes.generate import note, start
from gptj_predictor.server.tls import CertificateFiles

#: What ``grpc.health.v1`` knows: the server, and its one service.
SERVICES = ("", pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name)

#: Seconds between two looks whether the health has changed.
WATCH_SECONDS = 0.25

#: Seconds, at the end, for answers that are on their way.
LAST_ANSWERS_SECONDS = 1.0


class Servicer(InferenceServicer):
    """kserve's, with inference of our own. Methods get a call's scope in place of its context."""

    def __init__(
        self,
        data_plane: DataPlane,
        model_repository_extension: ModelRepositoryExtension,
        predictor: GPTJPredictor,
    ) -> None:
        super().__init__(data_plane, model_repository_extension)
        self._predictor = predictor

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Scope) -> Any:  # noqa: N802
        """Whether the model would answer."""
        check_model(request.name, request.version, self._predictor.name)
        return await super().ModelReady(request, context)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Scope) -> Any:  # noqa: N802
        """The model's inputs and outputs, and its version, which kserve leaves out."""
        check_model(request.name, request.version, self._predictor.name)
        found = await self._data_plane.model_metadata(request.name)
        return pb.ModelMetadataResponse(**found)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Scope) -> Any:  # noqa: N802
        """Generate; the call is over when its deadline is, or its client goes away.

        Raises:
            Exception: see :func:`gptj_predictor.server.errors.problem_of`.
        """
        predictor = self._predictor
        check_model(request.model_name, request.model_version, predictor.name)
        predictor.check_ready()
        seconds = timeout_seconds(context)
        with predictor.requests.begin(caller_of(context), seconds) as active:
            asked = parse_message(request, predictor.defaults, predictor.limits)
            texts = await start(context, asked, active, self._data_plane, predictor)
            assert isinstance(texts, list)  # it is not streamed
            note(context, asked, texts)
        return infer_message(asked, texts, predictor.name)


class Health(health_pb2_grpc.HealthServicer):
    """``grpc.health.v1``, as load balancers and kubelets ask it; readiness is looked up."""

    def __init__(self, is_serving: Callable[[], bool]) -> None:
        self._is_serving = is_serving
        self._closing = asyncio.Event()

    def close(self) -> None:
        """End the streams of those that watch."""
        self._closing.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Scope) -> Any:  # noqa: N802
        """Whether a request would be answered now.

        Raises:
            NotFound: there is no such service.
        """
        if request.service not in SERVICES:
            raise NotFound(f"no such service: {request.service[:200]}")
        return self._response(request)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: object
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The same, and again whenever it changes."""
        last = None
        while True:
            response = self._response(request)
            if response != last:
                last = response
                yield response
            if self._closing.is_set():
                return
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._closing.wait()
            except TimeoutError:
                continue

    def _response(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        statuses = health_pb2.HealthCheckResponse
        if request.service not in SERVICES:
            return statuses(status=statuses.SERVICE_UNKNOWN)
        serving = statuses.SERVING if self._is_serving() else statuses.NOT_SERVING
        return statuses(status=serving)


class PredictorGRPCServer:
    """Serves until it is stopped."""

    def __init__(
        self,
        data_plane: DataPlane,
        repository: ModelRepositoryExtension,
        predictor: GPTJPredictor,
        *,
        flags: Namespace,
        wrap: Callable[[ASGIApp], ASGIApp],
        max_message_bytes: int,
        receive_timeout_seconds: float,
    ) -> None:
        """Prepare; nothing listens yet.

        Args:
            data_plane: Answers what kserve's own methods ask.
            repository: Answers load and unload calls.
            predictor: The one model.
            flags: kserve's own flags, parsed.
            wrap: Puts the middleware around an application.
            max_message_bytes: Of a request.
            receive_timeout_seconds: In which the message of a call must arrive.
        """
        self._servicer = Servicer(data_plane, repository, predictor)
        self._predictor = predictor
        self._flags = flags
        self._calls = GrpcCalls(wrap, receive_timeout_seconds)
        self._max_message_bytes = max_message_bytes
        self._health: Health | None = None
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serve until :meth:`stop`."""
        flags = self._flags
        received = min(self._max_message_bytes, flags.grpc_max_receive_message_length)
        self._health = Health(lambda: self._predictor.serving)
        self._server = grpc.aio.server(
            interceptors=(self._calls,),
            options=[
                ("grpc.max_send_message_length", flags.grpc_max_send_message_length),
                ("grpc.max_receive_message_length", received),
            ],
        )
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        address = f"[::]:{flags.grpc_port}"
        files = CertificateFiles.of(flags)
        if files is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, files.for_grpc())
        await self._server.start()
        await self._server.wait_for_termination()

    async def stop(self) -> None:
        """Close the port and all connections; answers that are on their way are sent."""
        if self._server is not None and self._health is not None:
            self._health.close()
            await self._server.stop(LAST_ANSWERS_SECONDS)
