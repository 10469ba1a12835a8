"""Rules for everything that the chart makes, whatever the values."""

from __future__ import annotations

from typing import Any

import helm_python
import kubernetes_validate
import pytest

from gptj_predictor import __version__
from tests.support.chart_values import EVERYTHING, MANY, MODES
from tests.support.charts import (
    CHART,
    EXAMPLES,
    Release,
    Values,
    example_values,
    render,
    round_trip,
)

#: The oldest version that Chart.yaml allows, and the newest with a schema.
KUBERNETES = ("1.27", "1.37")

#: Custom resources: kubernetes-validate has no schema for them.
CUSTOM = {
    "HTTPRoute",
    "InferencePool",
    "InferenceService",
    "PodMonitor",
    "PrometheusRule",
    "ScaledObject",
    "ServiceMonitor",
}

#: API versions that every supported Kubernetes serves and none deprecates.
API_VERSIONS = {
    "v1",
    "batch/v1",
    "policy/v1",
    "networking.k8s.io/v1",
    "serving.kserve.io/v1beta1",
    "monitoring.coreos.com/v1",
    "keda.sh/v1alpha1",
    "gateway.networking.k8s.io/v1",
    "inference.networking.k8s.io/v1",
}


@pytest.mark.parametrize("example", [*EXAMPLES, None])
def test_lint(example: str | None) -> None:
    report = helm_python.lint(
        CHART, example_values(example) if example else None, strict=True, namespace="ml"
    )
    assert report["total_charts_linted"] == 1
    assert report["errors"] == []
    # 1 is information: that there is no icon.
    assert [one for one in report["messages"] if one["severity"] > 1] == []


def test_the_oldest_kubernetes_is_the_one_that_is_tested() -> None:
    with helm_python.Chart.load(CHART) as chart:
        assert chart.metadata["kubeVersion"] == f">={KUBERNETES[0]}.0-0"


def test_chart_and_package_have_one_version() -> None:
    with helm_python.Chart.load(CHART) as chart:
        assert chart.metadata["appVersion"] == chart.version == __version__
    assert render().container["image"].endswith(f":{__version__}")


@pytest.mark.slow
@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.slow
def test_built_in_kinds_are_valid(releases: dict[str, Release], version: str) -> None:
    seen: dict[str, Any] = {}
    for release in releases.values():
        for one in release.objects:
            if one["kind"] not in CUSTOM:
                seen.setdefault(repr(one), one)
    kinds = {one["kind"] for one in seen.values()}
    assert kinds == {
        "ConfigMap",
        "Ingress",
        "Job",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Pod",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    }
    for one in seen.values():
        assert kubernetes_validate.validate(one, version, strict=True) == version


@pytest.mark.slow
@pytest.mark.slow
def test_no_field_of_the_inference_service_is_lost(releases: dict[str, Release]) -> None:
    for name, release in releases.items():
        if release.has("InferenceService"):
            service = release.one("InferenceService")
            assert round_trip(service, "V1beta1InferenceService") == service, name


def test_a_field_that_kserve_lacks_would_be_found() -> None:
    service = render().one("InferenceService")
    service["spec"]["predictor"]["replicas"] = 3
    assert round_trip(service, "V1beta1InferenceService") != service
    service = render().one("InferenceService")
    service["spec"]["predictor"]["containers"][0]["livenessProb"] = {}
    assert round_trip(service, "V1beta1InferenceService") != service


@pytest.mark.slow
def test_api_versions(releases: dict[str, Release]) -> None:
    used = {one["apiVersion"] for release in releases.values() for one in release.objects}
    assert used == API_VERSIONS


@pytest.mark.slow
def test_what_is_made(releases: dict[str, Release]) -> None:
    for name, release in releases.items():
        only, benchmark = ", only" in name, "none, " not in name
        if name.startswith(("example", "everything")):
            continue
        assert release.has("InferenceService") != only, name
        assert release.has("Pod", "-test") != only, name
        assert release.has("Job", "-benchmark-") == benchmark, name
        assert release.has("Job", "-pull-") == ("no download" not in name), name
        assert release.has("PersistentVolumeClaim") == (", own" in name), name
        assert not release.has("PodMonitor")
        assert not release.has("PrometheusRule")
        assert not release.has("ServiceMonitor")
        assert not release.has("Service")
        assert not release.has("ConfigMap")
        assert not release.has("NetworkPolicy")
        assert not release.has("PodDisruptionBudget")
        assert not release.has("ScaledObject")
        assert not release.has("HTTPRoute")
        assert not release.has("Ingress")


@pytest.mark.slow
def test_names_are_unique_and_short(releases: dict[str, Release]) -> None:
    longest = render(EVERYTHING, name="a" * 53)
    for release in (*releases.values(), longest):
        names = [(one["kind"], one["metadata"]["name"]) for one in release.objects]
        assert len(names) == len(set(names))
        assert max(len(name) for _, name in names) <= 63


def test_names_that_yaml_would_take_for_numbers() -> None:
    """Names that look like numbers or booleans stay strings in every object."""
    values: Values = {
        "fullnameOverride": "on",
        "model": {"name": "6"},
        "cache": {"subPath": "2024", "storageClassName": "1", "mountVia": "volume"},
        "priorityClassName": "1",
        "runtimeClassName": "0",
        "image": {"repository": "1", "tag": "1.0"},
        "serviceAccount": {"name": "1e3"},
    }
    extras = (
        *("podMonitor", "prometheusRule", "dashboard"),
        *("networkPolicy", "podDisruptionBudget"),
    )
    values |= {name: {"enabled": True} for name in extras}
    release = render(values, {"benchmark": {"batchSize": 1}}, MANY, name="12")
    for one in release.objects:
        assert isinstance(one["metadata"]["name"], str)
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "12"
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, KUBERNETES[1], strict=True)
    service = release.one("InferenceService")
    assert round_trip(service, "V1beta1InferenceService") == service
    assert all(isinstance(arg, str) for arg in release.container["args"])


def test_optional_parts() -> None:
    """Optional objects select the others by their labels, and every pod gets the common values."""
    release = render(EVERYTHING, MANY)
    selected = {
        "serving.kserve.io/inferenceservice": release.one("InferenceService")["metadata"]["name"]
    }
    assert release.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selected
    # A node with a crashing replica can be drained.
    budget = release.one("PodDisruptionBudget")["spec"]
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert release.one("PodMonitor")["spec"]["selector"]["matchLabels"] == selected
    assert release.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] == "user-port"
    predictor = release.one("NetworkPolicy", "predictor")["spec"]
    assert predictor["podSelector"]["matchLabels"] == selected
    ports = {port["port"] for port in predictor["ingress"][0]["ports"]}
    # The container's, and queue-proxy's: https://knative.dev/docs/serving/
    assert ports == {8080, 8012, 8013, 8112, 8022, 9090, 9091}
    assert predictor["ingress"][0]["from"] == [{"podSelector": {}}]
    assert [rule.get("to") for rule in predictor["egress"]] == [None, [{"namespaceSelector": {}}]]
    jobs = release.one("NetworkPolicy", "jobs")["spec"]
    [components] = jobs["podSelector"]["matchExpressions"]
    templates = [job["spec"]["template"]["metadata"] for job in release.all("Job")]
    for metadata in (*templates, release.one("Pod")["metadata"]):
        assert jobs["podSelector"]["matchLabels"].items() <= metadata["labels"].items()
        assert metadata["labels"]["app.kubernetes.io/component"] in components["values"]
    account = release.one("ServiceAccount")
    for pod in release.pods():
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["enableServiceLinks"] is False
    assert release.predictor["runtimeClassName"] == "nvidia"
    [benchmark] = [job for job in release.all("Job") if "benchmark" in job["metadata"]["name"]]
    assert benchmark["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
    for one in release.objects:
        if one["metadata"]["name"] != "demo-extra":
            assert one["metadata"]["labels"]["app.kubernetes.io/name"] == "gptj-isvc"
            assert one["metadata"]["labels"]["team"] == (
                "ops" if one["kind"] in {"PodMonitor", "PrometheusRule"} else "nlp"
            )
    assert release.one("InferenceService")["metadata"]["annotations"]["example.com/a"] == "b"
    standard = render(EVERYTHING, MANY, MODES["standard"])
    assert (
        standard.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"]
        == (standard.container["ports"][0]["name"])
    )
