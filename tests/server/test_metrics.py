"""``/metrics`` of the real server."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptj_predictor.server.metrics_table import OWN_METRICS, SERVER_METRICS
from tests.support.metrics import Scrape
from tests.support.servers import HELD, NAME, RunningServer, wait_for

pytestmark = pytest.mark.process

OWN = {metric.name: metric for metric in OWN_METRICS}

#: What a name must not have: Prometheus' conventions ask for base units and no types.
UNITS_AND_TYPES = re.compile(
    r"_(ms|milliseconds|microseconds|minutes|hours|kb|mb|kilobytes|percent|"
    r"counter|gauge|histogram|summary|bucket|count|sum)(_|$)"
)

TTFT = [
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
]
TPOT = [
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
]
LATENCY = [
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
]
TOKENS = [1.0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]  # of max_model_len 2048

#: The phases of a start: all take some time, but the wait where there was none.
LOADED = ("imports", "tokenizer", "weights_read", "weights_to_device", "kv_cache", "cuda_graphs")
WAITED = ("snapshot_wait",)

#: vLLM's metrics: type, labels, and buckets of a histogram.
VLLM: dict[str, tuple[str, set[str], list[float]]] = {
    "vllm:num_requests_running": ("gauge", {"model_name", "engine"}, []),
    "vllm:num_requests_waiting": ("gauge", {"model_name", "engine"}, []),
    "vllm:kv_cache_usage_perc": ("gauge", {"model_name", "engine"}, []),
    "vllm:cache_config_info": ("gauge", {"block_size", "num_gpu_blocks", "engine"}, []),
    "vllm:prompt_tokens_total": ("counter", {"model_name", "engine"}, []),
    "vllm:generation_tokens_total": ("counter", {"model_name", "engine"}, []),
    "vllm:request_success_total": (
        "counter",
        {"model_name", "engine", "finished_reason"},
        [],
    ),
    "vllm:num_preemptions_total": ("counter", {"model_name", "engine"}, []),
    "vllm:prefix_cache_queries_total": ("counter", {"model_name", "engine"}, []),
    "vllm:prefix_cache_hits_total": ("counter", {"model_name", "engine"}, []),
    "vllm:time_to_first_token_seconds": ("histogram", {"model_name", "engine"}, TTFT),
    "vllm:inter_token_latency_seconds": ("histogram", {"model_name", "engine"}, TPOT),
    "vllm:request_time_per_output_token_seconds": ("histogram", {"model_name", "engine"}, TPOT),
    "vllm:e2e_request_latency_seconds": ("histogram", {"model_name", "engine"}, LATENCY),
    "vllm:request_queue_time_seconds": ("histogram", {"model_name", "engine"}, LATENCY),
    "vllm:request_prefill_time_seconds": ("histogram", {"model_name", "engine"}, LATENCY),
    "vllm:request_decode_time_seconds": ("histogram", {"model_name", "engine"}, LATENCY),
    "vllm:request_prompt_tokens": ("histogram", {"model_name", "engine"}, TOKENS),
    "vllm:request_generation_tokens": ("histogram", {"model_name", "engine"}, TOKENS),
}


@pytest.fixture(scope="module")
def loading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Path]]:
    """A server with vLLM's names that loads once the file is there."""
    release = tmp_path_factory.mktemp("release") / "now"
    flags = ("--metrics_compat", "vllm")
    with RunningServer(*flags, program=HELD, RELEASE=str(release)) as running:
        running.wait_until("/", 200)
        yield running, release


@pytest.fixture
def compatible(loading: tuple[RunningServer, Path]) -> RunningServer:
    """The same once it is ready."""
    running, release = loading
    release.touch()
    running.wait_until_ready()
    return running


def test_while_the_model_loads(loading: tuple[RunningServer, Path]) -> None:
    running, release = loading
    before = Scrape.of(running)
    assert not release.exists()
    assert before.value("gptj_ready") == 0
    assert before.value("gptj_load_seconds", phase="imports") > 0
    assert before.value("gptj_load_seconds", phase="weights_read") == 0
    assert before.value("gptj_start_seconds") == 0
    assert own_names(before) == {metric.name for metric in SERVER_METRICS}
    assert running.post('{"instances": ["a"]}').status_code == 503
    after = Scrape.of(running)
    assert after.rises(before) == {
        'gptj_requests_total{outcome="rejected",protocol="v1"}': 1,
        'gptj_rejections_total{reason="not_ready"}': 1,
    }


def test_once_it_is_loaded(compatible: RunningServer) -> None:
    scrape = Scrape.of(compatible)
    assert scrape.value("gptj_ready") == 1
    assert scrape.value("gptj_draining") == 0
    for phase in LOADED:
        assert scrape.value("gptj_load_seconds", phase=phase) > 0
    took = sum(scrape.value("gptj_load_seconds", phase=phase) for phase in (*LOADED, *WAITED))
    assert took <= scrape.value("gptj_start_seconds")


def own_names(scrape: Scrape) -> set[str]:
    return {name for name in scrape.types if name.startswith("gptj_")}


def test_the_scrape_is_the_table(server: RunningServer) -> None:
    server.predict(["The sky"], max_new_tokens=2)
    scrape = Scrape.of(server)
    assert own_names(scrape) == set(OWN)
    for name, metric in OWN.items():
        assert scrape.types[name] == metric.kind
        assert scrape.help[name] == metric.help
        sample = f"{name}_count" if metric.kind == "histogram" else name
        assert scrape.labels(sample) == {frozenset(metric.labels)}, name
    assert "vllm:" not in scrape.text


@pytest.mark.parametrize("name", OWN)
def test_names_are_as_prometheus_wants_them(name: str) -> None:
    metric = OWN[name]
    assert re.fullmatch(r"gptj_[a-z]+(_[a-z]+)*", name)
    assert name.endswith("_total") == (metric.kind == "counter")
    assert not UNITS_AND_TYPES.search(name)
    assert re.match(r"[A-Z1].*[^ ]\.$", metric.help)
    assert "le" not in metric.labels


def test_kserve_s_own_stay(server: RunningServer) -> None:
    server.predict(["The sky"], max_new_tokens=2)
    assert Scrape.of(server).value("request_predict_seconds_count", model_name=NAME) > 0


def test_what_a_request_adds(server: RunningServer) -> None:
    server.predict(["Something that nobody else asks"], max_new_tokens=1)
    before = Scrape.of(server)
    server.predict(["One and", "the other"], min_new_tokens=4, max_new_tokens=4, top_k=3)
    after = Scrape.of(server)
    rises = after.rises(before)
    steps = rises.pop("gptj_steps_total")
    assert 4 <= steps <= 8
    assert rises.pop("gptj_step_seconds_count") >= steps
    prompts = rises.pop("gptj_prompt_tokens_total")
    assert prompts >= 2
    assert rises == {
        'gptj_requests_total{outcome="ok",protocol="v1"}': 1,
        "gptj_request_seconds_count": 1,
        "gptj_generated_tokens_total": 8,
        "gptj_prefix_cache_queries_tokens_total": prompts,
        'gptj_sequences_total{finish_reason="length"}': 2,
        "gptj_queue_seconds_count": 2,
        "gptj_prefill_seconds_count": 2,
        "gptj_time_to_first_token_seconds_count": 2,
        "gptj_inter_token_seconds_count": 6,
        "gptj_time_per_output_token_seconds_count": 2,
        "gptj_decode_seconds_count": 2,
        "gptj_sequence_seconds_count": 2,
        "gptj_sequence_prompt_tokens_count": 2,
        "gptj_sequence_generated_tokens_count": 2,
        "gptj_step_batch_size_count": steps,
    }
    assert after.value("gptj_requests_running") == 0
    assert after.value("gptj_requests_waiting") == 0
    assert after.value("gptj_kv_cache_pages_used") == 0


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        (f"/v1/models/{NAME}:predict", b"{", "invalid"),
        ("/v1/models/other:predict", b'{"instances": ["a"]}', "not_found"),
        (f"/v1/models/{NAME}:predict", b'{"instances": ["' + b"a" * 2**21 + b'"]}', "too_large"),
    ],
)
def test_what_a_refused_request_adds(
    server: RunningServer, path: str, body: bytes, reason: str
) -> None:
    before = Scrape.of(server)
    assert server.post(body, path).status_code >= 400
    assert Scrape.of(server).rises(before) == {
        'gptj_requests_total{outcome="rejected",protocol="v1"}': 1,
        f'gptj_rejections_total{{reason="{reason}"}}': 1,
    }


def test_what_is_no_request_at_all(server: RunningServer) -> None:
    before = Scrape.of(server)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")
    assert Scrape.of(server).rises(before) == {'gptj_rejections_total{reason="not_http"}': 1}


def test_nothing_else_is_counted(server: RunningServer) -> None:
    before = Scrape.of(server)
    for path in ("/", "/v2/health/ready", "/nope", f"/v1/models/{NAME}", "/metrics"):
        server.client.get(path)
    server.post("{}", "/v1/nope")
    assert Scrape.of(server).rises(before) == {}


def test_a_client_that_goes_away(server: RunningServer) -> None:
    before = Scrape.of(server)
    body = b'{"instances": ["Once"], "parameters": {"min_new_tokens": 2000, "max_length": 2048}}'
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST {server.predict_path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        connection.sendall(f"{head}\r\n\r\n".encode() + body)
        wait_for(lambda: Scrape.of(server).value("gptj_requests_running") == 1)
    cancelled = 'gptj_requests_total{outcome="cancelled",protocol="v1"}'
    wait_for(lambda: cancelled in Scrape.of(server).rises(before))
    wait_for(lambda: Scrape.of(server).value("gptj_requests_running") == 0)
    rises = Scrape.of(server).rises(before)
    assert rises['gptj_sequences_total{finish_reason="cancelled"}'] == 1
    assert rises[cancelled] == 1
    assert not any("reason=" in name and "rejections" in name for name in rises)


def test_vllm_s_names_types_labels_and_buckets(compatible: RunningServer) -> None:
    compatible.predict(["The sky", "A story"], max_new_tokens=5)
    scrape = Scrape.of(compatible)
    assert {name for name in scrape.types if name.startswith("vllm:")} == set(VLLM)
    for name, (kind, labels, bounds) in VLLM.items():
        assert scrape.types[name] == kind
        assert scrape.help[name]
        sample = f"{name}_count" if kind == "histogram" else name
        assert scrape.labels(sample) == {frozenset(labels)}, name
        if kind == "histogram":
            assert scrape.labels(f"{name}_bucket") == {frozenset({*labels, "le"})}
            les = [float(text) for text in scrape.values_of(f"{name}_bucket", "le")]
            assert les == [*bounds, math.inf], name
    reasons = scrape.values_of("vllm:request_success_total", "finished_reason")
    assert set(reasons) == {"stop", "length", "abort", "error"}


def test_vllm_s_values_are_ours(compatible: RunningServer) -> None:
    compatible.predict(["The sky", "A story"], max_new_tokens=5)
    scrape = Scrape.of(compatible)
    labels = {"model_name": NAME, "engine": "0"}
    for name, own in {
        "prompt_tokens_total": "prompt_tokens_total",
        "generation_tokens_total": "generated_tokens_total",
        "prefix_cache_queries_total": "prefix_cache_queries_tokens_total",
        "time_to_first_token_seconds_sum": "time_to_first_token_seconds_sum",
        "inter_token_latency_seconds_count": "inter_token_seconds_count",
        "request_time_per_output_token_seconds_sum": "time_per_output_token_seconds_sum",
        "e2e_request_latency_seconds_sum": "sequence_seconds_sum",
        "request_queue_time_seconds_sum": "queue_seconds_sum",
        "request_prefill_time_seconds_sum": "prefill_seconds_sum",
        "request_decode_time_seconds_sum": "decode_seconds_sum",
        "request_prompt_tokens_sum": "sequence_prompt_tokens_sum",
        "request_generation_tokens_sum": "sequence_generated_tokens_sum",
    }.items():
        value = scrape.value(f"gptj_{own}")
        assert scrape.value(f"vllm:{name}", **labels) == value, name
        assert value > 0, name
    ended = {
        reason: scrape.value("vllm:request_success_total", finished_reason=reason, **labels)
        for reason in ("stop", "length")
    }
    stops = ("eos_token", "stop_sequence")
    assert ended == {
        "stop": sum(scrape.value("gptj_sequences_total", finish_reason=stop) for stop in stops),
        "length": scrape.value("gptj_sequences_total", finish_reason="length"),
    }
    assert sum(ended.values()) >= 2
    pages = scrape.value("gptj_kv_cache_pages")
    cache = {"block_size": "16", "num_gpu_blocks": f"{pages:.0f}", "engine": "0"}
    assert scrape.value("vllm:cache_config_info", **cache) == 1
    assert 0 <= scrape.value("vllm:kv_cache_usage_perc", **labels) <= 1
