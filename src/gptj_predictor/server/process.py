"""The server process: ports, signals, and the order of start and end."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from typing import Any

import kserve
from kserve.protocol.rest.server import RESTServer

from gptj_predictor.server.access import Access
from gptj_predictor.server.grpc_server import PredictorGRPCServer
from gptj_predictor.server.kserve_quirks import ClosedRepository, TruthfulDataPlane
from gptj_predictor.server.middleware import receive_deadline, request_middleware
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.routes.app import create_app
from gptj_predictor.server.tls import CertificateFiles


class PredictorRESTServer(RESTServer):
    """kserve's REST server around our application instead of its own."""

    def __init__(
        self,
        *args: Any,
        receive_timeout_seconds: float,
        certificate: CertificateFiles | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._certificate = certificate
        self.config.http = receive_deadline(receive_timeout_seconds)
        self.config.ws = "none"
        self.config.server_header = False
        self.config.proxy_headers = False  # it would trust 127.0.0.1; see Access.proxies

    def create_application(self) -> None:
        """Nothing to add: the application came complete."""

    async def start(self) -> None:
        """Serve until :meth:`stop`."""
        self.config.load()
        if self._certificate is not None:
            self._certificate.renew_in(self.config.ssl)
        await super().start()

    def stop(self) -> None:
        """Stop accepting, let running requests end within the grace period. Signal-safe."""
        self._server.should_exit = True


class PredictorServer(kserve.ModelServer):
    """kserve's model server; HTTP answers from the start, the model is ready once it is loaded."""

    def __init__(
        self,
        predictor: GPTJPredictor,
        flags: Namespace,
        *,
        receive_timeout_seconds: float,
        access: Access,
        log_prompts: bool,
    ) -> None:
        """Set up; nothing listens yet.

        Args:
            predictor: The one model.
            flags: kserve's own flags, parsed.
            receive_timeout_seconds: Seconds for a request to arrive whole.
            access: Who may ask.
            log_prompts: Whether the log gets prompts and texts.
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
        self._access = access
        self.register_model(predictor)
        predictor.enable_latency_logging = self.enable_latency_logging
        self.dataplane = TruthfulDataPlane(self.registered_models, predictor)
        self.model_repository_extension = ClosedRepository(self.registered_models)
        app = create_app(
            self.dataplane,
            self.model_repository_extension,
            predictor,
            docs=self.enable_docs_url,
        )
        self._rest = PredictorRESTServer(
            request_middleware(
                app, predictor.limits.max_body_bytes, access.guard, log_prompts=log_prompts
            ),
            self.dataplane,
            self.model_repository_extension,
            self.http_port,
            grace_period=self.grace_period,
            event_loop=self.event_loop,
            timeout_keep_alive=self.timeout_keep_alive,
            ssl_certfile=self.ssl_certfile,
            ssl_keyfile=self.ssl_keyfile,
            receive_timeout_seconds=receive_timeout_seconds,
            certificate=CertificateFiles.of(flags),
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
            self._grpc_server = PredictorGRPCServer(
                self.grpc_port,
                self.dataplane,
                self.model_repository_extension,
                access=self._access,
                flags=self._flags,
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
