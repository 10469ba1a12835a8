"""vLLM's metrics, for routers, autoscalers and dashboards that know only those.

Names, types, labels and buckets are those of ``vllm/v1/metrics/loggers.py`` as of vLLM 0.11 and
later, with ``max_model_len`` the model's context. What vLLM calls a request is a sequence here, as
vLLM counts each of a request's several texts by itself.
"""

from __future__ import annotations

from collections import Counter

from gptj_predictor.engine.request import FinishReason
from gptj_predictor.engine.stats import token_bounds
from gptj_predictor.server.metrics_table import EngineState, Kind, Metric, Value

#: Upper bounds of vLLM's buckets in seconds.
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0),
    *(240.0, 480.0, 960.0, 1920.0, 7680.0),
)

#: What vLLM says where we say more precisely why a sequence ended.
FINISHED_REASONS = {
    FinishReason.EOS: "stop",
    FinishReason.STOP_SEQUENCE: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.DEADLINE: "abort",
    FinishReason.SHUTDOWN: "abort",
    FinishReason.CANCELLED: "abort",
    FinishReason.ERROR: "error",
}

#: vLLM's number of the engine among several; here is one.
ENGINE = "0"


def common_labels(state: EngineState) -> dict[str, str]:
    """Labels of all metrics but :data:`INFO_METRICS`."""
    return {"model_name": state.model_name, "engine": ENGINE}


def _finished(state: EngineState) -> Value:
    counts: Counter[tuple[str, ...]] = Counter()
    for reason, number in state.stats.finished.items():
        counts[(FINISHED_REASONS[reason],)] += number
    return dict(counts)


def _cache_config(state: EngineState) -> Value:
    config = state.info.config
    return {(str(config.page_size), str(config.num_pages), ENGINE): 1}


def _tokens(state: EngineState) -> tuple[int, ...]:
    return token_bounds(state.info.max_context)


_COUNTER, _GAUGE, _HISTOGRAM = Kind

#: Its labels describe the KV cache, so it has not the common ones.
INFO_METRICS: tuple[Metric[EngineState], ...] = (
    Metric(
        "vllm:cache_config_info",
        _GAUGE,
        "1, with the size of the KV cache.",
        _cache_config,
        ("block_size", "num_gpu_blocks", "engine"),
    ),
)

METRICS: tuple[Metric[EngineState], ...] = (
    Metric(
        "vllm:num_requests_running",
        _GAUGE,
        "As gptj_requests_running.",
        lambda state: state.stats.num_running,
    ),
    Metric(
        "vllm:num_requests_waiting",
        _GAUGE,
        "As gptj_requests_waiting.",
        lambda state: state.stats.num_waiting,
    ),
    Metric(
        "vllm:kv_cache_usage_perc",
        _GAUGE,
        "Share of the KV cache's pages that sequences hold: 0 to 1.",
        lambda state: state.stats.used_pages / state.info.config.num_pages,
    ),
    Metric(
        "vllm:prompt_tokens_total",
        _COUNTER,
        "As gptj_prompt_tokens_total.",
        lambda state: state.stats.num_prompt_tokens,
    ),
    Metric(
        "vllm:generation_tokens_total",
        _COUNTER,
        "As gptj_generated_tokens_total.",
        lambda state: state.stats.num_generated_tokens,
    ),
    Metric(
        "vllm:request_success_total",
        _COUNTER,
        "Sequences by what ended them, in vLLM's words.",
        _finished,
        ("finished_reason",),
    ),
    Metric(
        "vllm:num_preemptions_total",
        _COUNTER,
        "As gptj_preemptions_total.",
        lambda state: state.stats.num_preemptions,
    ),
    Metric(
        "vllm:prefix_cache_queries_total",
        _COUNTER,
        "As gptj_prefix_cache_queries_tokens_total.",
        lambda state: state.stats.num_prefix_query_tokens,
    ),
    Metric(
        "vllm:prefix_cache_hits_total",
        _COUNTER,
        "As gptj_prefix_cache_hits_tokens_total.",
        lambda state: state.stats.num_prefix_hit_tokens,
    ),
    Metric(
        "vllm:time_to_first_token_seconds",
        _HISTOGRAM,
        "As gptj_time_to_first_token_seconds.",
        lambda state: state.stats.first_token_seconds,
        bounds=lambda state: FIRST_TOKEN_SECONDS,
    ),
    Metric(
        "vllm:inter_token_latency_seconds",
        _HISTOGRAM,
        "As gptj_inter_token_seconds.",
        lambda state: state.stats.inter_token_seconds,
        bounds=lambda state: TOKEN_SECONDS,
    ),
    Metric(
        "vllm:request_time_per_output_token_seconds",
        _HISTOGRAM,
        "As gptj_time_per_output_token_seconds.",
        lambda state: state.stats.token_seconds,
        bounds=lambda state: TOKEN_SECONDS,
    ),
    Metric(
        "vllm:e2e_request_latency_seconds",
        _HISTOGRAM,
        "As gptj_sequence_seconds.",
        lambda state: state.stats.end_to_end_seconds,
        bounds=lambda state: REQUEST_SECONDS,
    ),
    Metric(
        "vllm:request_queue_time_seconds",
        _HISTOGRAM,
        "As gptj_queue_seconds.",
        lambda state: state.stats.queue_seconds,
        bounds=lambda state: REQUEST_SECONDS,
    ),
    Metric(
        "vllm:request_prefill_time_seconds",
        _HISTOGRAM,
        "As gptj_prefill_seconds.",
        lambda state: state.stats.prefill_seconds,
        bounds=lambda state: REQUEST_SECONDS,
    ),
    Metric(
        "vllm:request_decode_time_seconds",
        _HISTOGRAM,
        "As gptj_decode_seconds.",
        lambda state: state.stats.decode_seconds,
        bounds=lambda state: REQUEST_SECONDS,
    ),
    Metric(
        "vllm:request_prompt_tokens",
        _HISTOGRAM,
        "As gptj_sequence_prompt_tokens.",
        lambda state: state.stats.prompt_tokens,
        bounds=_tokens,
    ),
    Metric(
        "vllm:request_generation_tokens",
        _HISTOGRAM,
        "As gptj_sequence_generated_tokens.",
        lambda state: state.stats.generated_tokens,
        bounds=_tokens,
    ),
)
