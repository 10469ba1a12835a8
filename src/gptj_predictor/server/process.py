"""The server process: ports, signals, and the order of start and end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import kserve
from kserve.protocol.rest.server import RESTServer
from prometheus_client import REGISTRY

from gptj_predictor.common.phases import Phases
from gptj_predictor.engine.request import EngineDeadError
from gptj_predictor.server.access import Access
from gptj_predictor.server.cors import allow_origins
from gptj_predictor.server.drain import Drain
from gptj_predictor.server.gate import Gate
from gptj_predictor.server.grpc_server import PredictorGRPCServer
from gptj_predictor.server.http_protocol import limited_protocol
from gptj_predictor.server.kserve_quirks import ClosedRepository, TruthfulDataPlane
from gptj_predictor.server.metrics import MetricsCollector
from gptj_predictor.server.middleware import request_middleware
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.request_counts import CountRequests, RequestCounts
from gptj_predictor.server.routes.app import create_app
from gptj_predictor.server.tls import CertificateFiles
from gptj_predictor.settings import ServerSettings

if TYPE_CHECKING:  # OpenTelemetry's SDK is imported only where there are traces
    from gptj_predictor.server.trace_export import TraceExport

logger = logging.getLogger(__name__)

#: All of them drain; a second SIGINT, as a second Ctrl-C, does not wait.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
SECOND_SIGINT_EXIT_CODE = 128 + signal.SIGINT

#: Seconds between two looks at the engine.
WATCH_SECONDS = 0.25

#: Seconds in which those that wait for a lost engine get their answers.
LAST_ANSWERS_SECONDS = 1.0

#: Seconds, at most and within the grace period, in which the last traces are exported.
LAST_TRACES_SECONDS = 1.0


class PredictorRESTServer(RESTServer):
    """kserve's REST server around our application; it leaves signals to :class:`Drain`."""

    def __init__(
        self,
        *args: Any,
        receive_timeout_seconds: float,
        count_unread: Callable[[str], None],
        certificate: CertificateFiles | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._certificate = certificate
        self.config.http = limited_protocol(receive_timeout_seconds, count_unread)
        self.config.ws = "none"  # an upgrade would go past all limits
        self.config.server_header = False
        self.config.proxy_headers = False  # it would trust 127.0.0.1; see Access.proxies
        # uvicorn would close the port at once; see Drain.
        self._server.capture_signals = contextlib.nullcontext

    def create_application(self) -> None:
        """Nothing to add: the application came complete."""

    async def start(self) -> None:
        """Serve until :meth:`stop`."""
        self.config.load()
        if self._certificate is not None:
            self._certificate.renew_in(self.config.ssl)
        await super().start()

    def stop(self) -> None:
        """Close the port and idle connections; those with an answer to send end after it."""
        self._server.should_exit = True


class PredictorServer(kserve.ModelServer):
    """kserve's model server; HTTP answers from the start, the model is ready once it is loaded."""

    def __init__(
        self,
        predictor: GPTJPredictor,
        drain: Drain,
        flags: Namespace,
        settings: ServerSettings,
        phases: Phases,
        *,
        access: Access,
        traces: TraceExport | None = None,
    ) -> None:
        """Set up; nothing listens yet.

        Args:
            predictor: The one model.
            drain: What a signal begins.
            flags: kserve's own flags, parsed.
            settings: The server's.
            phases: How long the start has taken so far.
            access: Who may ask.
            traces: Where spans go, if there are any.
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
            # What uvicorn waits once the drain is over.
            grace_period=max(1, int(drain.margin_seconds / 4)),
            ssl_certfile=flags.ssl_certfile,
            ssl_keyfile=flags.ssl_keyfile,
        )
        self._predictor = predictor
        self._drain = drain
        self._traces = traces
        self._step_timeout_seconds = settings.step_timeout_seconds
        self._ending: asyncio.Task[None] | None = None
        self._trouble: str | None = None
        self.register_model(predictor)
        predictor.enable_latency_logging = self.enable_latency_logging
        self.dataplane = TruthfulDataPlane(self.registered_models, predictor)
        self.model_repository_extension = ClosedRepository(self.registered_models)
        app = create_app(
            self.dataplane,
            self.model_repository_extension,
            predictor,
            docs=self.enable_docs_url,
            access=access,
        )
        counts = RequestCounts()
        REGISTRY.register(
            MetricsCollector(predictor, drain, counts, phases, settings.metrics_compat)
        )
        count = partial(CountRequests, counts=counts)
        trace = None if traces is None else partial(traces.wrap, model_name=predictor.name)
        gate = partial(Gate, requests=predictor.requests, drain=drain)
        wrap = partial(
            request_middleware,
            max_body_bytes=settings.max_body_bytes,
            gate=lambda inner: access.guard(gate(inner)),
            count=count,
            trace=trace,
            log_prompts=settings.log_prompts,
        )
        self._grpc = PredictorGRPCServer(
            self.dataplane,
            self.model_repository_extension,
            predictor,
            flags=flags,
            wrap=wrap,
            max_message_bytes=settings.max_body_bytes,
            receive_timeout_seconds=settings.receive_timeout_seconds,
        )
        self._rest = PredictorRESTServer(
            # gRPC's requests are never a page's.
            wrap(
                app, gate=lambda inner: allow_origins(access.guard(gate(inner)), settings.origins)
            ),
            self.dataplane,
            self.model_repository_extension,
            self.http_port,
            grace_period=self.grace_period,
            event_loop=self.event_loop,
            timeout_keep_alive=self.timeout_keep_alive,
            ssl_certfile=self.ssl_certfile,
            ssl_keyfile=self.ssl_keyfile,
            receive_timeout_seconds=settings.receive_timeout_seconds,
            count_unread=counts.add_unread,
            certificate=CertificateFiles.of(flags),
        )

    def run(self) -> None:
        """Serve until a signal ends it and all is answered.

        Raises:
            EngineDeadError: the engine died or hangs; those that waited for it have been told.
            Exception: whatever loading the model or binding a port raised; nothing listens then.
        """
        try:
            with asyncio.Runner(loop_factory=self._rest.config.get_loop_factory()) as runner:
                loop = runner.get_loop()
                for number in SIGNALS:
                    signal.signal(number, partial(self._on_signal, loop))
                runner.run(self._serve_all())
        except SystemExit as error:  # uvicorn's way to say that it cannot listen, logged by it
            raise OSError(f"cannot listen on HTTP port {self.http_port}") from error
        finally:
            if self._traces is not None:
                self._traces.stop(min(LAST_TRACES_SECONDS, self._drain.seconds_left))
        if self._trouble is not None:
            raise EngineDeadError(self._trouble)

    def _on_signal(
        self, loop: asyncio.AbstractEventLoop, number: int, frame: FrameType | None
    ) -> None:
        if number == signal.SIGINT and self._ending is not None:
            os._exit(SECOND_SIGINT_EXIT_CODE)
        loop.call_soon_threadsafe(self._begin_to_end)

    def _begin_to_end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        await self._drain.run(is_ready=lambda: self._predictor.ready)
        self._rest.stop()

    async def _serve_all(self) -> None:
        if self.enable_grpc:
            self.servers.append(asyncio.create_task(self._grpc.start()))
        self.servers.append(asyncio.create_task(self._predictor.start_engine()))
        http = asyncio.create_task(self._rest.start())
        watch = asyncio.create_task(self._watch_engine())
        for task in self.servers:
            task.add_done_callback(self._stop_on_failure)
        try:
            await http
        finally:
            watch.cancel()
            self._predictor.stop_engine()
            await self._grpc.stop()
        for task in self.servers:
            if task.done():
                task.result()

    async def _watch_engine(self) -> None:
        """End the process when only a restart helps, after all that wait have been told."""
        while (trouble := self._predictor.trouble(self._step_timeout_seconds)) is None:
            await asyncio.sleep(WATCH_SECONDS)
        self._trouble = trouble
        logger.error("%s; the process ends", trouble)
        self._predictor.lose_engine()
        await asyncio.sleep(LAST_ANSWERS_SECONDS)
        self._rest.stop()

    def _stop_on_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._rest.stop()
