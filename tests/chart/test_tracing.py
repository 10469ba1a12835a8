"""OpenTelemetry's variables, and the way to the collector."""

from __future__ import annotations

import pytest

from tests.support.charts import Release, Values, merged, render

ENDPOINT: Values = {"tracing": {"endpoint": "http://collector.monitoring:4318"}}


def variables(release: Release) -> dict[str, str]:
    env = release.container["env"]
    return {one["name"]: one["value"] for one in env if one["name"].startswith("OTEL_")}


def test_nothing_without_a_collector() -> None:
    assert not variables(render({"tracing": {"serviceName": "a", "samplingRatio": 0.5}}))


def test_variables() -> None:
    assert variables(render(ENDPOINT)) == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.monitoring:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_SERVICE_NAME": "demo",
    }
    more = {"protocol": "grpc", "serviceName": "texts", "samplingRatio": 0}
    found = variables(render(ENDPOINT, {"tracing": more}))
    assert found["OTEL_EXPORTER_OTLP_PROTOCOL"] == "grpc"
    assert found["OTEL_SERVICE_NAME"] == "texts"
    assert found["OTEL_TRACES_SAMPLER"] == "parentbased_traceidratio"
    assert found["OTEL_TRACES_SAMPLER_ARG"] == "0"


def test_extra_env_comes_last_and_only_the_server_traces() -> None:
    extra = {"name": "OTEL_EXPORTER_OTLP_HEADERS", "valueFrom": {"secretKeyRef": {"name": "a"}}}
    release = render(ENDPOINT, {"extraEnv": [extra]})
    assert release.container["env"][-1] == extra
    for job in release.all("Job"):
        [container] = job["spec"]["template"]["spec"]["containers"]
        assert [one["name"] for one in container["env"]] == ["OTEL_EXPORTER_OTLP_HEADERS"]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.monitoring:4317", 4317),
        ("https://traces.example.com/otlp", 443),
        ("http://traces.example.com", 80),
        ("http://[2001:db8::1]:4318", 4318),
        ("http://[2001:db8::1]/v1", 80),
    ],
)
def test_network_policy(endpoint: str, port: int) -> None:
    values = merged(ENDPOINT, {"tracing": {"endpoint": endpoint}})
    policy = {"networkPolicy": {"enabled": True}}
    dns, collector = render(values, policy).one("NetworkPolicy", "predictor")["spec"]["egress"]
    assert {one["port"] for one in dns["ports"]} == {53, 5353}
    assert collector == {"ports": [{"port": port, "protocol": "TCP"}]}
    [only] = render(policy).one("NetworkPolicy", "predictor")["spec"]["egress"]
    assert only == dns
