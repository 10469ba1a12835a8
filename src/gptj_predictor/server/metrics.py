"""What ``/metrics`` has beside kserve's own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from gptj_predictor.common.phases import Phases
from gptj_predictor.server import metrics_vllm
from gptj_predictor.server.drain import Drain
from gptj_predictor.server.metrics_table import (
    ENGINE_METRICS,
    SERVER_METRICS,
    EngineState,
    ServerState,
    families,
)
from gptj_predictor.server.predictor import GPTJPredictor
from gptj_predictor.server.request_counts import RequestCounts
from gptj_predictor.settings import MetricsCompat


class MetricsCollector(Collector):
    """Reads the counters of server and engine when Prometheus asks, and not before."""

    def __init__(
        self,
        predictor: GPTJPredictor,
        drain: Drain,
        counts: RequestCounts,
        phases: Phases,
        compat: MetricsCompat,
    ) -> None:
        """Prepare.

        Args:
            predictor: Has the engine, once it is loaded, and the queue.
            drain: Whether the server is about to end.
            counts: What became of the requests.
            phases: How long the start took.
            compat: Which other names there are.
        """
        self._predictor = predictor
        self._drain = drain
        self._counts = counts
        self._phases = phases
        self._compat = compat

    def collect(self) -> Iterator[Family]:
        """All families."""
        predictor = self._predictor
        server = ServerState(
            is_ready=predictor.serving,
            is_draining=self._drain.has_begun,
            counts=self._counts,
            admission=predictor.requests.admission,
            phases=self._phases,
        )
        yield from families(SERVER_METRICS, server)
        info, stats = predictor.engine_info, predictor.engine_stats
        if info is None or stats is None:
            return
        engine = EngineState(predictor.name, info, stats)
        yield from families(ENGINE_METRICS, engine)
        if self._compat is MetricsCompat.VLLM:
            labels = metrics_vllm.common_labels(engine)
            yield from families(metrics_vllm.METRICS, engine, labels)
            yield from families(metrics_vllm.INFO_METRICS, engine)
