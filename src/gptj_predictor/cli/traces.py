"""Whether there are traces: the standard ``OTEL_*`` variables decide."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptj_predictor.server.trace_export import TraceExport

logger = logging.getLogger(__name__)

EXPORTER = "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Whether an endpoint or an exporter is named, and nothing switches traces off.

    An empty variable counts as none, as OpenTelemetry's specification says.
    """
    exporter = environment.get(EXPORTER, "").strip()
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none":
        return False
    return bool(exporter) or any(environment.get(name) for name in ENDPOINTS)


def start_traces(environment: Mapping[str, str]) -> TraceExport | None:
    """Start exporting, if it is wanted and possible; what is not possible is one line in the log.

    OpenTelemetry's SDK is imported only here, as it takes its time.
    """
    if not wants_traces(environment):
        return None
    try:
        from gptj_predictor.server.trace_export import TraceExport

        return TraceExport.start(environment)
    except Exception as error:  # whatever is wrong with traces, requests are served
        logger.warning("no traces: %s", " ".join(str(error).split()))
        return None
