"""The server's own metrics: one table, from which the scrape and the docs are made."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Generic, TypeVar

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.utils import floatToGoString

from gptj_predictor import __version__
from gptj_predictor.common.phases import Phases
from gptj_predictor.engine.core import EngineInfo
from gptj_predictor.engine.stats import EngineStats, HistogramCounts
from gptj_predictor.server.admission import Admission
from gptj_predictor.server.request_counts import RequestCounts

Source = TypeVar("Source")
Name = TypeVar("Name", bound=enum.StrEnum)

#: One value, or one for each combination of the metric's labels.
Value = float | HistogramCounts | Mapping[tuple[str, ...], float]


class Kind(enum.StrEnum):
    """Prometheus' type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric(Generic[Source]):
    """One metric, and where its value comes from."""

    name: str  # as a query has it; for histograms without _bucket, _sum, _count
    kind: Kind
    help: str
    read: Callable[[Source], Value]
    labels: tuple[str, ...] = ()
    bounds: Callable[[Source], Iterable[float]] | None = None  # some of a histogram's; all if none


@dataclass(frozen=True)
class ServerState:
    """What the server knows at the time of a scrape."""

    is_ready: bool
    is_draining: bool
    counts: RequestCounts
    admission: Admission
    phases: Phases


@dataclass(frozen=True)
class EngineState:
    """What the engine knows at the time of a scrape."""

    model_name: str
    info: EngineInfo
    stats: EngineStats


def families(
    metrics: Iterable[Metric[Source]], source: Source, common: Mapping[str, str] | None = None
) -> Iterator[Family]:
    """What a scrape returns of some metrics.

    Args:
        metrics: Which.
        source: What they read.
        common: Labels that every metric has beside its own, with their values.
    """
    common = common or {}
    for metric in metrics:
        value = metric.read(source)
        names, first = [*common, *metric.labels], [*common.values()]
        if isinstance(value, HistogramCounts):
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=names)
            bounds = None if metric.bounds is None else metric.bounds(source)
            buckets = [(_le(b), float(n)) for b, n in value.cumulative(bounds)]
            histogram.add_metric(first, buckets, value.total)
            yield histogram
            continue
        of_kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
        family = of_kind(metric.name, metric.help, labels=names)
        series = value if isinstance(value, Mapping) else {(): value}
        for labels, number in series.items():
            family.add_metric([*first, *labels], number)
        yield family


def _le(bound: float) -> str:
    """A bucket's label, spelled as Prometheus' clients do."""
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


def _by_name(counts: Mapping[Name, float]) -> dict[tuple[str, ...], float]:
    return {(name.value,): number for name, number in counts.items()}


def _build(state: ServerState) -> Value:
    return {(__version__, version("torch")): 1}


def _model(state: EngineState) -> Value:
    info = state.info
    devices = ",".join(str(device) for device in info.devices)
    attention = ",".join(dict.fromkeys(info.attention.values()))
    return {(state.model_name, info.precision, info.quantization, devices, attention): 1}


_COUNTER, _GAUGE, _HISTOGRAM = Kind

#: Those that are there from the start.
SERVER_METRICS: tuple[Metric[ServerState], ...] = (
    Metric(
        "gptj_ready",
        _GAUGE,
        "1 while a request would be answered; 0 while the model loads, the server drains, or the "
        "engine is dead.",
        lambda state: float(state.is_ready),
    ),
    Metric(
        "gptj_draining",
        _GAUGE,
        "1 from the signal that ends the server.",
        lambda state: float(state.is_draining),
    ),
    Metric(
        "gptj_requests_total",
        _COUNTER,
        "Requests for texts by what became of them: ok, rejected (see gptj_rejections_total), "
        "cancelled (the client has gone), error.",
        lambda state: state.counts.outcomes,
        ("protocol", "outcome"),
    ),
    Metric(
        "gptj_rejections_total",
        _COUNTER,
        "Requests for texts that were refused, by reason; not_http, head_too_large: any request.",
        lambda state: state.counts.rejections,
        ("reason",),
    ),
    Metric(
        "gptj_request_seconds",
        _HISTOGRAM,
        "Time from a request's headers to the end of its answer, of those with outcome ok.",
        lambda state: state.counts.seconds.read(),
    ),
    Metric(
        "gptj_queue_requests",
        _GAUGE,
        "Requests of which no sequence has started; bounded by --max_queued_requests.",
        lambda state: state.admission.num_requests,
    ),
    Metric(
        "gptj_queue_prompt_tokens",
        _GAUGE,
        "Prompt tokens of sequences that have not started; bounded by --max_queued_tokens.",
        lambda state: state.admission.num_tokens,
    ),
    Metric(
        "gptj_load_seconds",
        _GAUGE,
        "What each phase of the start took; 0 for one that has not ended.",
        lambda state: _by_name(state.phases.seconds),
        ("phase",),
    ),
    Metric(
        "gptj_start_seconds",
        _GAUGE,
        "Time from the start of the process until the model was ready; 0 before.",
        lambda state: state.phases.total,
    ),
    Metric(
        "gptj_build_info",
        _GAUGE,
        "1, with the versions of the server and of torch.",
        _build,
        ("version", "torch"),
    ),
)

#: Those that are there once the model is loaded. A request has a sequence for each of its prompts
#: and each text that it wants of it.
ENGINE_METRICS: tuple[Metric[EngineState], ...] = (
    Metric(
        "gptj_model_info",
        _GAUGE,
        "1, with what is served, and how.",
        _model,
        ("model_name", "precision", "quantization", "device", "attention"),
    ),
    Metric(
        "gptj_requests_running",
        _GAUGE,
        "Sequences in the running batch.",
        lambda state: state.stats.num_running,
    ),
    Metric(
        "gptj_requests_waiting",
        _GAUGE,
        "Sequences that wait for a place in the batch.",
        lambda state: state.stats.num_waiting,
    ),
    Metric(
        "gptj_kv_cache_pages",
        _GAUGE,
        "Pages of the KV cache.",
        lambda state: state.info.config.num_pages,
    ),
    Metric(
        "gptj_kv_cache_pages_used",
        _GAUGE,
        "Pages that sequences hold. What only the prefix cache keeps is free.",
        lambda state: state.stats.used_pages,
    ),
    Metric(
        "gptj_prompt_tokens_total",
        _COUNTER,
        "Tokens of the prompts that were computed.",
        lambda state: state.stats.num_prompt_tokens,
    ),
    Metric(
        "gptj_generated_tokens_total",
        _COUNTER,
        "Tokens generated.",
        lambda state: state.stats.num_generated_tokens,
    ),
    Metric(
        "gptj_prefix_cache_queries_tokens_total",
        _COUNTER,
        "Tokens of the sequences that joined the batch, which were looked up in the prefix cache.",
        lambda state: state.stats.num_prefix_query_tokens,
    ),
    Metric(
        "gptj_prefix_cache_hits_tokens_total",
        _COUNTER,
        "Those of them that it had: cached tokens.",
        lambda state: state.stats.num_prefix_hit_tokens,
    ),
    Metric(
        "gptj_preemptions_total",
        _COUNTER,
        "How often a sequence lost its place in the batch and was computed again.",
        lambda state: state.stats.num_preemptions,
    ),
    Metric(
        "gptj_sequences_total",
        _COUNTER,
        "Sequences by what ended them.",
        lambda state: _by_name(state.stats.finished),
        ("finish_reason",),
    ),
    Metric(
        "gptj_sequence_failures_total",
        _COUNTER,
        "Sequences that ended with finish reason error, by cause.",
        lambda state: _by_name(state.stats.failures),
        ("failure",),
    ),
    Metric(
        "gptj_queue_seconds",
        _HISTOGRAM,
        "Time that a sequence waits for its first place in the batch.",
        lambda state: state.stats.queue_seconds,
    ),
    Metric(
        "gptj_prefill_seconds",
        _HISTOGRAM,
        "Time from there to its first token.",
        lambda state: state.stats.prefill_seconds,
    ),
    Metric(
        "gptj_time_to_first_token_seconds",
        _HISTOGRAM,
        "TTFT: both together.",
        lambda state: state.stats.first_token_seconds,
    ),
    Metric(
        "gptj_inter_token_seconds",
        _HISTOGRAM,
        "Time between two tokens of a sequence.",
        lambda state: state.stats.inter_token_seconds,
    ),
    Metric(
        "gptj_time_per_output_token_seconds",
        _HISTOGRAM,
        "TPOT: a sequence's mean time between two tokens, once it has ended.",
        lambda state: state.stats.token_seconds,
    ),
    Metric(
        "gptj_decode_seconds",
        _HISTOGRAM,
        "Time from a sequence's first token to its last.",
        lambda state: state.stats.decode_seconds,
    ),
    Metric(
        "gptj_sequence_seconds",
        _HISTOGRAM,
        "End-to-end time of a sequence, from the queue to its end.",
        lambda state: state.stats.end_to_end_seconds,
    ),
    Metric(
        "gptj_sequence_prompt_tokens",
        _HISTOGRAM,
        "Prompt tokens of a sequence that ended.",
        lambda state: state.stats.prompt_tokens,
    ),
    Metric(
        "gptj_sequence_generated_tokens",
        _HISTOGRAM,
        "Tokens generated for a sequence that ended.",
        lambda state: state.stats.generated_tokens,
    ),
    Metric(
        "gptj_steps_total",
        _COUNTER,
        "Steps of the engine.",
        lambda state: state.stats.num_steps,
    ),
    Metric(
        "gptj_step_seconds",
        _HISTOGRAM,
        "Time of a step.",
        lambda state: state.stats.step_seconds,
    ),
    Metric(
        "gptj_step_batch_size",
        _HISTOGRAM,
        "Sequences in a step.",
        lambda state: state.stats.batch_size,
    ),
)

#: All of them.
OWN_METRICS: tuple[Metric[Any], ...] = (*SERVER_METRICS, *ENGINE_METRICS)
