"""What the ``OTEL_*`` variables decide, and what becomes of those that make no sense."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from gptj_predictor.cli.traces import start_traces, wants_traces
from gptj_predictor.server.trace_export import SdkLog, TraceExport, WatchedExporter

URL = "http://127.0.0.1:9"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": URL}


@pytest.fixture(autouse=True)
def sdk_log() -> Iterator[logging.Logger]:
    """The SDK's, as it was afterwards."""
    logger = logging.getLogger("opentelemetry")
    handlers, propagate = logger.handlers, logger.propagate
    yield logger
    logger.handlers, logger.propagate = handlers, propagate


def start(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> TraceExport | None:
    """Start with these variables and no others of OpenTelemetry's."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return start_traces(os.environ)


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines that the server's log has; caplog may hear the SDK's own as well."""
    return [
        record.getMessage() for record in caplog.records if record.name.startswith("gptj_predictor")
    ]


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "a", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": URL}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": URL}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none"} | ENDPOINT, False),
        ({"OTEL_TRACES_EXPORTER": ""} | ENDPOINT, True),
        ({"OTEL_SDK_DISABLED": "TRUE"} | ENDPOINT, False),
        ({"OTEL_SDK_DISABLED": "false"} | ENDPOINT, True),
    ],
)
def test_when_there_are_traces(variables: dict[str, str], wanted: bool) -> None:
    assert wants_traces(variables) is wanted


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin2"}, "exporter 'zipkin2' is not installed"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"} | ENDPOINT, "use http/protobuf or grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "user:hidden@host:4318"}, "is not an http or https URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[hidden"}, "is not an http or https URL"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a:hidden"}, "TRACES_ENDPOINT is not"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "0"} | ENDPOINT, "max_queue_size"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "9"} | ENDPOINT, "max_export_batch_size"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-1"} | ENDPOINT, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TIMEOUT": "x"} | ENDPOINT,
            "could not convert",
        ),
    ],
)
def test_no_traces_and_one_line(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    said: str,
) -> None:
    assert start(monkeypatch, variables) is None
    [line] = ours(caplog)
    assert line.startswith("no traces: ")
    assert said in line
    assert "hidden" not in line


def test_defaults_where_a_variable_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    variables = {
        "OTEL_TRACES_SAMPLER": "nonsense",
        "OTEL_BSP_SCHEDULE_DELAY": "soon",
        "OTEL_EXPORTER_OTLP_HEADERS": "hidden and without a name",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "zip",
    }
    traces = start(monkeypatch, variables | ENDPOINT)
    assert traces is not None
    traces.stop(5)
    [line] = ours(caplog)
    for word in ("nonsense", "OTEL_BSP_SCHEDULE_DELAY", "Header format invalid", "zip"):
        assert word in line
    assert "hidden" not in line


class Faulty(SpanExporter):
    """Does what it is told: a result, or an exception."""

    def __init__(self) -> None:
        self.next: SpanExportResult | Exception = SpanExportResult.SUCCESS
        self.log = logging.getLogger("opentelemetry.exporter.faulty")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if isinstance(self.next, Exception):
            raise self.next
        if self.next is SpanExportResult.FAILURE:
            self.log.warning("first %s", "reason")
            self.log.error("last reason")
        return self.next


@pytest.fixture
def faulty(sdk_log: logging.Logger) -> tuple[Faulty, WatchedExporter]:
    log = SdkLog()
    sdk_log.handlers, sdk_log.propagate = [log], False
    log.end_of_start()
    exporter = Faulty()
    return exporter, WatchedExporter(exporter, log)


def test_one_line_for_a_failure(
    faulty: tuple[Faulty, WatchedExporter], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gptj_predictor")
    exporter, watched = faulty
    for result in (
        SpanExportResult.SUCCESS,
        SpanExportResult.FAILURE,
        SpanExportResult.FAILURE,
        ValueError("closed"),
        SpanExportResult.SUCCESS,
        ValueError("closed"),
        ValueError("closed"),
    ):
        exporter.next = result
        watched.export([])
    assert ours(caplog) == [
        "traces are lost, the export fails: first reason",
        "traces are exported again",
        "traces are lost, the export fails: ValueError('closed')",
    ]


def test_other_lines_of_the_sdk_come_once(
    faulty: tuple[Faulty, WatchedExporter],
    sdk_log: logging.Logger,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, watched = faulty
    for _ in range(3):
        sdk_log.warning("Queue full, dropping %s.", "Span")
        sdk_log.info("a detail")
    assert ours(caplog) == ["traces: Queue full, dropping Span."]
    watched.export([])
    sdk_log.warning("Queue full, dropping %s.", "Span")
    assert len(ours(caplog)) == 2


def test_the_end_does_not_wait_for_an_export(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    traces = start(monkeypatch, ENDPOINT)
    assert traces is not None
    release = threading.Event()
    monkeypatch.setattr(type(traces.provider), "shutdown", lambda self: release.wait())
    started = time.monotonic()
    traces.stop(0.2)
    assert time.monotonic() - started < 5
    assert "were not exported within 0.2 s" in caplog.text
    release.set()
    monkeypatch.undo()
    traces.stop(5)
