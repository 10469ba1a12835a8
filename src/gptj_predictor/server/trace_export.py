"""From ended spans to a collector, beside everything else: nothing here may hurt a request.

OpenTelemetry's SDK does the work: it reads the ``OTEL_*`` variables of the sampler, the resource,
the limits, the batches and the exporter, and exports in a thread of its own, from a bounded queue.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from starlette.types import ASGIApp

from gptj_predictor import __version__
from gptj_predictor.server.traces import TraceRequests

logger = logging.getLogger(__name__)

#: Where packages register their exporters, and what OTLP's protocols are called there.
EXPORTERS = "opentelemetry_traces_exporter"
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}

#: OTLP's without a variable, as its specification recommends.
DEFAULT_PROTOCOL = "http/protobuf"

OUR_NAME = "gptj-predictor"

#: Characters of a line that the SDK writes.
MAX_REASON = 300


class TraceExport:
    """A running export."""

    def __init__(self, provider: TracerProvider) -> None:
        self.provider = provider
        self._tracer = provider.get_tracer(OUR_NAME, __version__)

    @classmethod
    def start(cls, environment: Mapping[str, str]) -> TraceExport:
        """Set up what the variables ask for. No connection is made yet.

        Raises:
            ValueError: an exporter, a protocol or an endpoint cannot be.
            Exception: whatever the SDK raises at its variables.
        """
        log = SdkLog()
        sdk = logging.getLogger("opentelemetry")
        sdk.handlers = [log]
        sdk.propagate = False
        exporters = {name: _exporter(name, environment) for name in _exporter_names(environment)}
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        for exporter in exporters.values():
            provider.add_span_processor(BatchSpanProcessor(WatchedExporter(exporter, log)))
        log.end_of_start()
        logger.info("traces are exported: %s", ", ".join(exporters))
        return cls(provider)

    def wrap(self, app: ASGIApp, *, model_name: str) -> ASGIApp:
        """Wrap an application that serves a model."""
        return TraceRequests(app, self._tracer, model_name)

    def stop(self, seconds: float) -> None:
        """Export what is left, as far as that takes no longer than ``seconds``."""
        # The SDK would wait for its exporter, whose retries take 10 s and more.
        end = threading.Thread(target=self.provider.shutdown, name="last traces", daemon=True)
        end.start()
        end.join(seconds)
        if end.is_alive():
            logger.warning("the last traces were not exported within %g s", seconds)


def _resource() -> Resource:
    """Who we are, where the variables do not say it."""
    found = Resource.create()
    ours = {SERVICE_NAME: OUR_NAME, SERVICE_VERSION: __version__}
    if not str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        del ours[SERVICE_NAME]
    if SERVICE_VERSION in found.attributes:
        del ours[SERVICE_VERSION]
    return found.merge(Resource(ours))


def _exporter_names(environment: Mapping[str, str]) -> list[str]:
    """The names under which the exporters are registered."""
    given = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    names = [name.strip() for name in given.split(",")]
    if "otlp" not in names:
        return names
    protocol = (
        environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "").strip()
        or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip()
        or DEFAULT_PROTOCOL
    )
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"OTLP protocol {protocol[:60]!r} is not supported; use {' or '.join(PROTOCOLS)}"
        )
    return [PROTOCOLS[protocol] if name == "otlp" else name for name in names]


def _exporter(name: str, environment: Mapping[str, str]) -> SpanExporter:
    if name == PROTOCOLS["http/protobuf"]:
        _check_endpoint(environment)
    for found in entry_points(group=EXPORTERS, name=name):
        exporter: SpanExporter = found.load()()
        return exporter
    raise ValueError(f"exporter {name[:60]!r} is not installed")


def _check_endpoint(environment: Mapping[str, str]) -> None:
    """Find at the start what would otherwise fail at every export.

    The value is not repeated: it may hold a password.
    """
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        if endpoint := environment.get(variable):
            try:
                url = urlsplit(endpoint)
                good = url.scheme in ("http", "https") and url.hostname and url.port != 0
            except ValueError:
                good = False
            if not good:
                raise ValueError(f"{variable} is not an http or https URL")
            return


class SdkLog(logging.Handler):
    """What the SDK logs, in few lines.

    It writes lines for every batch, some with a traceback. Here the lines of the start are put
    together to one, those of a failing export are kept for :class:`WatchedExporter`, and of the
    others each is written once until an export succeeds.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._start: list[str] | None = []
        self._said: set[str] = set()
        self._export = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        text = _one_line(record)
        if self._start is not None:
            self._start.append(text)
        elif hasattr(self._export, "reasons"):
            self._export.reasons.append(text)
        elif record.msg not in self._said:
            self._said.add(record.msg)
            logger.warning("traces: %s", text)

    def end_of_start(self) -> None:
        """Write the line of the start, if there is something to say."""
        if self._start:
            logger.warning("traces: %s", "; ".join(self._start))
        self._start = None

    def begin_export(self) -> None:
        """Keep this thread's lines."""
        self._export.reasons = []

    def end_export(self, *, succeeded: bool) -> str:
        """Stop that; the first of the lines."""
        reasons = [*self._export.reasons, "no reason given"]
        del self._export.reasons
        if succeeded:
            self._said.clear()
        return str(reasons[0])


def _one_line(record: logging.LogRecord) -> str:
    # This one's argument is a header, which may be a secret.
    is_header = record.name == "opentelemetry.util.re"
    text = str(record.msg).partition(":")[0] if is_header else record.getMessage()
    if record.exc_info and record.exc_info[1]:
        text += f" ({record.exc_info[1]})"
    return " ".join(text.split())[:MAX_REASON]


class WatchedExporter(SpanExporter):
    """An exporter; a line in the log when it begins to fail, and one when it works again."""

    def __init__(self, exporter: SpanExporter, log: SdkLog) -> None:
        self._exporter = exporter
        self._log = log
        self._fails = False
        self.shutdown = partial(exporter.shutdown)  # type: ignore[method-assign]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch; called in the SDK's thread."""
        self._log.begin_export()
        reason = None
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            result, reason = SpanExportResult.FAILURE, repr(error)[:MAX_REASON]
        succeeded = result is SpanExportResult.SUCCESS
        first = self._log.end_export(succeeded=succeeded)
        if not succeeded and not self._fails:
            logger.warning("traces are lost, the export fails: %s", reason or first)
        elif succeeded and self._fails:
            logger.info("traces are exported again")
        self._fails = not succeeded
        return result

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """See :class:`SpanExporter`."""
        return self._exporter.force_flush(timeout_millis)
