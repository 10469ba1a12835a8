"""Traces, as an OTLP collector on loopback gets them from a real server."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import grpc
import httpx
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as pb_grpc

from gptj_predictor import __version__
from gptj_predictor.server.traces import MAX_TRACED_SEQUENCES
from tests.server.test_grpc import message
from tests.support.otlp import (
    Collector,
    ReceivedSpan,
    grpc_collector,
    http_collector,
    silent_collector,
)
from tests.support.servers import (
    LIVE_PATHS,
    NAME,
    READY_PATHS,
    RunningServer,
    environment,
    wait_for,
)

pytestmark = pytest.mark.process

UNSET, ERROR = 0, 2

#: Exports soon, so that no test has to wait.
SOON: dict[str, Any] = {"OTEL_BSP_SCHEDULE_DELAY": "50"}

PROMPT = "The secret of the valley"


class Traced:
    """A server and its collector."""

    def __init__(self, server: RunningServer, collector: Collector) -> None:
        self.server = server
        self.collector = collector

    def ask(
        self, body: object, path: str | None = None, **headers: str
    ) -> tuple[httpx.Response, ReceivedSpan, list[ReceivedSpan]]:
        """Answer, span and children of a request that belongs to a trace of ours."""
        trace_id = secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"} | headers
        response = self.server.post(json.dumps(body), path, headers=headers)
        return response, *self.collector.trace(trace_id)


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with (
        http_collector() as collector,
        RunningServer(
            "--max_queued_requests",
            "2",
            "--max_batch_size",
            "1",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_EXPORTER_OTLP_HEADERS="x-key=of%20ours",
            OTEL_RESOURCE_ATTRIBUTES="k8s.pod.name=pod-7",
            grpc=True,
            **SOON,
        ) as server,
    ):
        server.wait_until_ready()
        yield Traced(server, collector)


def check_times(request: ReceivedSpan, children: list[ReceivedSpan]) -> None:
    """Each sequence goes from phase to phase without a gap, inside its request."""
    sequences: dict[tuple[int, int], list[ReceivedSpan]] = {}
    for span in children:
        key = span.attributes["gptj.instance"], span.attributes["gptj.sequence"]
        sequences.setdefault(key, []).append(span)
    for spans in sequences.values():
        assert [span.name for span in spans] == ["queue", "prefill", "decode"][: len(spans)]
        assert request.start <= spans[0].start
        assert spans[-1].end <= request.end
        for one, following in pairwise(spans):
            assert one.end == following.start
        assert all(span.start <= span.end for span in spans)


def test_a_request_has_a_span_with_its_phases(traced: Traced) -> None:
    before = time.time_ns()
    parameters = {
        "max_new_tokens": 20,
        "min_new_tokens": 20,
        "num_return_sequences": 2,
        "seed": 7,
        "temperature": 0.5,
        "stop": "\n\n\n",
    }
    body = {"instances": [PROMPT, "Once"], "parameters": parameters}
    response, request, children = traced.ask(body, **{"x-request-id": "our-id"})
    after = time.time_ns()
    assert response.status_code == 200
    tokens = [
        child.attributes["gptj.prompt_tokens"] for child in children if child.name == "prefill"
    ]
    assert request.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v1/models/{model_name}:predict",
        "network.protocol.version": "1.1",
        "url.path": traced.server.predict_path,
        "url.scheme": "http",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "gptj-predictor",
        "gen_ai.request.model": NAME,
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_k": 50.0,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.seed": 7,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stop_sequences": ["\n\n\n"],
        "gen_ai.usage.input_tokens": tokens[0] + tokens[2],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 80,
        "gen_ai.response.finish_reasons": ["length"] * 4,
        "gptj.request_id": "our-id",
        "gptj.request.instances": 2,
        "gptj.request.max_length": 1024,
    }
    assert request.name == f"text_completion {NAME}"
    assert request.status == UNSET
    assert before <= request.start
    assert request.end <= after
    assert [child.name for child in children] == ["queue", "prefill", "decode"] * 4
    check_times(request, children)
    assert children[2].attributes == {
        "gptj.instance": 0,
        "gptj.sequence": 0,
        "gptj.generated_tokens": 20,
        "gptj.finish_reason": "length",
    }
    # One after the other, as the batch has one place: most of the last one's time is its queue.
    queue, prefill, decode = children[-3:]
    assert queue.end - queue.start > (decode.end - prefill.start)
    assert decode.end > decode.start


def test_who_we_are(traced: Traced) -> None:
    _, request, _ = traced.ask({"instances": ["a"], "parameters": {"max_new_tokens": 1}})
    assert request.resource["service.name"] == "gptj-predictor"
    assert request.resource["service.version"] == __version__
    assert request.resource["k8s.pod.name"] == "pod-7"
    assert traced.collector.headers[-1]["x-key"] == "of ours"


def test_prompts_and_texts_are_in_no_span(traced: Traced) -> None:
    body = {"instances": [PROMPT], "parameters": {"max_new_tokens": 5}}
    response, request, children = traced.ask(body)
    text = response.json()["predictions"][0]["generated_text"].removeprefix(PROMPT)
    assert text
    refused, other, _ = traced.ask({"instances": [PROMPT], "parameters": {"stop": PROMPT * 9}})
    assert PROMPT in refused.text  # the error repeats the value; the span does not
    everything = repr([request, *children, other])
    assert "secret" not in everything
    assert text not in everything


def test_the_callers_trace_goes_on(traced: Traced) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    parent = f"00-{trace_id}-00f067aa0ba902b7-01"
    _, request, _ = traced.ask(
        {"instances": ["a"], "parameters": {"max_new_tokens": 1}},
        tracestate="vendor=value",
    )
    assert request.parent_id == "00f067aa0ba902b7"
    assert request.trace_state == "vendor=value"
    # The caller does not sample it, so neither do we; the next one comes after it.
    traced.server.post("{}", headers={"traceparent": parent.removesuffix("01") + "00"})
    traced.ask({})
    assert not traced.collector.of(trace_id)


def test_a_grpc_call_has_a_span_too(traced: Traced) -> None:
    """In its caller's trace, with its phases; probes have none."""
    trace_id = secrets.token_hex(16)
    metadata = (("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"), ("x-request-id", "ours"))
    with grpc.insecure_channel(f"127.0.0.1:{traced.server.grpc_port}") as channel:
        stub = pb_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(pb.ServerReadyRequest(), metadata=metadata).ready
        stub.ModelInfer(message([PROMPT], max_new_tokens=3, min_new_tokens=3), metadata=metadata)
    request, children = traced.collector.trace(trace_id)
    assert request.name == f"text_completion {NAME}"
    assert request.attributes["url.path"] == "/inference.GRPCInferenceService/ModelInfer"
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["gptj.request_id"] == "ours"
    assert request.attributes["gen_ai.usage.output_tokens"] == 3
    assert [child.name for child in children] == ["queue", "prefill", "decode"]
    check_times(request, children)


def test_a_trace_of_its_own(traced: Traced) -> None:
    """Without a caller's trace, or with one that makes no sense."""
    for number, parent in enumerate(("", "00-zz-zz-01", "00-" + "0" * 32 + "-00f067aa0ba902b7-01")):
        headers = {"x-request-id": f"own-{number}"} | ({"traceparent": parent} if parent else {})
        traced.server.post("{}", headers=headers)
    traced.ask({})
    found = [
        span
        for span in traced.collector.spans
        if str(span.attributes.get("gptj.request_id")).startswith("own-")
    ]
    assert len(found) == 3
    assert {span.parent_id for span in found} == {""}
    assert len({span.trace_id for span in found}) == 3


@pytest.mark.parametrize(
    ("path", "status", "name", "route"),
    [
        (None, 400, f"text_completion {NAME}", "/v1/models/{model_name}:predict"),
        ("/v1/models/other:predict", 404, None, "/v1/models/{model_name}:predict"),
        ("/v1/models/a:predic", 404, None, "/v1/models/{call}"),
        ("/nowhere", 404, "POST", None),
    ],
)
def test_refused(
    traced: Traced, path: str | None, status: int, name: str | None, route: str | None
) -> None:
    response, request, children = traced.ask({"instances": []}, path)
    assert response.status_code == status
    assert request.name == (name or f"POST {route}")
    assert request.attributes["http.response.status_code"] == status
    assert request.attributes["error.type"] == str(status)
    assert request.attributes.get("http.route") == route
    assert request.status == UNSET  # the caller's error is none of the server's
    assert not children


def test_another_method(traced: Traced) -> None:
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    path = traced.server.predict_path
    assert traced.server.client.request("PROPFIND", path, headers=headers).status_code == 405
    request, _ = traced.collector.trace(trace_id)
    assert request.name == "HTTP /v1/models/{model_name}:predict"
    assert request.attributes["http.request.method"] == "_OTHER"


def test_deadline_before_the_first_token(traced: Traced) -> None:
    prompts = [
        f"{number} " * 300 for number in range(32)
    ]  # no step computes them in so short a time
    body = {"instances": prompts, "parameters": {"max_new_tokens": 50}}
    response, request, children = traced.ask(body, **{"x-request-timeout": "0.001"})
    assert response.status_code == 504
    assert request.attributes["http.response.status_code"] == 504
    assert request.status == ERROR
    assert "gen_ai.usage.output_tokens" not in request.attributes
    check_times(request, children)


def test_full_queue(traced: Traced) -> None:
    """Refused at the gate; those in the queue have their spans."""
    body = {"instances": ["a"], "parameters": {"max_new_tokens": 300, "min_new_tokens": 300}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: traced.ask(body), range(8)))
    refused = [request for response, request, _ in answers if response.status_code == 429]
    assert refused
    for request in refused:
        assert request.name == f"text_completion {NAME}"
        assert request.attributes["http.response.status_code"] == 429
        assert request.attributes["error.type"].startswith("queue")
        assert request.status == UNSET
    for response, request, children in answers:
        if response.status_code == 200:
            assert len(children) == 3
            check_times(request, children)


def test_client_gone(traced: Traced) -> None:
    trace_id = secrets.token_hex(16)
    body = {"instances": ["a"], "parameters": {"max_new_tokens": 2000, "min_new_tokens": 2000}}
    with pytest.raises(httpx.ReadTimeout):
        traced.server.client.post(
            traced.server.predict_path,
            json=body,
            timeout=0.5,
            headers={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"},
        )
    request, children = traced.collector.trace(trace_id)
    assert "http.response.status_code" not in request.attributes
    assert request.attributes["error.type"] == "client_gone"
    assert request.status == ERROR
    check_times(request, children)


def test_the_number_of_spans_is_bounded(traced: Traced) -> None:
    parameters = {"max_new_tokens": 1, "num_return_sequences": 8}
    response, request, children = traced.ask({"instances": ["a"] * 32, "parameters": parameters})
    assert response.status_code == 200
    assert len(children) == MAX_TRACED_SEQUENCES * 3
    check_times(request, children)
    # Those that ended last.
    assert {child.attributes["gptj.instance"] for child in children} == {31}
    assert request.attributes["gen_ai.usage.output_tokens"] == 256


def test_probes_and_scrapes_have_none(traced: Traced) -> None:
    for path in (*LIVE_PATHS, *READY_PATHS, "/metrics"):
        assert traced.server.client.get(path).status_code == 200
    traced.ask({})
    methods = {span.attributes.get("http.request.method") for span in traced.collector.spans}
    assert "GET" not in methods


def test_grpc_and_the_last_traces() -> None:
    """What no batch was made of is exported when the server ends."""
    with grpc_collector() as collector:
        variables: dict[str, Any] = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            "OTEL_SERVICE_NAME": "valley",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }
        with RunningServer(**variables) as server:
            server.wait_until_ready()
            server.predict(["a"], max_new_tokens=2)
            assert not collector.spans
            assert server.stop() == 0
            assert "traces:" not in server.log
        assert [span.name for span in collector.spans] == [
            "queue",
            "prefill",
            "decode",
            f"text_completion {NAME}",
        ]
        assert collector.spans[0].resource["service.name"] == "valley"


def has_seen(collector: Collector, num_exports: int) -> bool:
    return collector.num_exports >= num_exports


def test_a_collector_that_fails_and_variables_that_make_no_sense() -> None:
    """One line at the start, one when exports begin to fail, one when they work again."""
    variables: dict[str, Any] = {
        "OTEL_PROPAGATORS": "tracecontext,nonsense",
        "OTEL_TRACES_SAMPLER": "nonsense",
        "OTEL_EXPORTER_OTLP_HEADERS": "a secret without a name",
        "OTEL_PYTHON_TRACER_PROVIDER": "nonsense",
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
        **SOON,
    }
    with (
        http_collector(status=500) as collector,
        RunningServer(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **variables) as server,
    ):
        server.wait_until_ready()
        for number in range(4):
            server.predict(["a"], max_new_tokens=1)
            wait_for(partial(has_seen, collector, number + 1))
        assert "traces are exported again" not in server.log
        collector.status = 200
        server.predict(["a"], max_new_tokens=1)
        wait_for(lambda: "traces are exported again" in server.log)
        assert collector.spans
        assert server.stop() == 0
        lines = [line for line in server.log.splitlines() if " WARNING " in line]
        assert sum("OTEL_PROPAGATORS is left out" in line for line in lines) == 1
        [start] = [line for line in lines if "traces: " in line]
        assert "nonsense" in start
        [failure] = [line for line in lines if "traces are lost" in line]
        assert "500" in failure
        assert "secret" not in server.log
        assert "Traceback" not in server.log


@pytest.mark.parametrize("hangs", [False, True], ids=["dead", "hanging"])
def test_no_collector(hangs: bool) -> None:
    """Requests do not wait for it, and neither does the end."""
    variables = {"OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10"} | SOON
    if not hangs:
        variables["OTEL_EXPORTER_OTLP_TIMEOUT"] = "1"
    with (
        silent_collector(listens=hangs) as url,
        RunningServer(OTEL_EXPORTER_OTLP_ENDPOINT=url, **variables) as server,
    ):
        server.wait_until_ready()
        started = time.monotonic()
        for _ in range(20):  # 80 spans, four times what the queue holds
            server.predict(["a"], max_new_tokens=1)
        assert time.monotonic() - started < 8  # one export's time is 10 s
        if not hangs:
            wait_for(lambda: "traces are lost" in server.log)
        stopped = time.monotonic()
        assert server.stop(timeout=20) == 0
        assert time.monotonic() - stopped < 8
        assert server.log.count("traces are lost") == (0 if hangs else 1)
        assert server.log.count("Queue full") <= 1
        assert "Traceback" not in server.log


#: Prints what ``serve`` has imported when it would begin to serve.
IMPORTED = """
import sys
from gptj_predictor.server import kserve_flags
from gptj_predictor.server.process import PredictorServer

PredictorServer.run = lambda self: print(*sys.modules)
from gptj_predictor.__main__ import main
main()
"""


def test_without_the_variables_nothing_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, "serve"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(OTEL_SERVICE_NAME="valley", OTEL_EXPORTER_OTLP_ENDPOINT=""),
    )
    modules = done.stdout.split()
    assert "gptj_predictor.server.process" in modules
    assert not [name for name in modules if name.startswith("opentelemetry.sdk")]
    assert not [name for name in modules if name.startswith("opentelemetry.exporter")]
