"""kserve's gRPC server, with our interceptors and with TLS."""

from __future__ import annotations

from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc
from kserve.protocol.grpc.interceptors import ExceptionToStatusInterceptor, LoggingInterceptor
from kserve.protocol.grpc.server import GRPCServer
from kserve.protocol.grpc.servicer import InferenceServicer

from gptj_predictor.server.access import Access
from gptj_predictor.server.tls import CertificateFiles


class PredictorGRPCServer(GRPCServer):
    """kserve's server makes its own interceptors and never speaks TLS."""

    def __init__(self, *args: Any, access: Access, flags: Namespace, **kwargs: Any) -> None:
        super().__init__(*args, kwargs=vars(flags), **kwargs)
        self._access = access
        self._flags = flags

    async def start(self, max_workers: int) -> None:
        """Serve until :meth:`stop`."""
        flags = self._flags
        self._server = grpc.aio.server(
            ThreadPoolExecutor(max_workers=max_workers),
            interceptors=(
                LoggingInterceptor(),
                *self._access.interceptors(),
                ExceptionToStatusInterceptor(),
            ),
            options=[
                ("grpc.max_send_message_length", flags.grpc_max_send_message_length),
                ("grpc.max_receive_message_length", flags.grpc_max_receive_message_length),
            ],
        )
        servicer = InferenceServicer(self._data_plane, self._model_repository_extension)
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        address = f"[::]:{self._port}"
        files = CertificateFiles.of(flags)
        if files is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, files.for_grpc())
        await self._server.start()
        await self._server.wait_for_termination()
