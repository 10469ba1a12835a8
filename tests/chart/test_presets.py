"""The presets for many replicas: one volume for all, and an endpoint picker among them."""

from __future__ import annotations

import re

import pytest
import yaml

from gptj_predictor.server import metrics_vllm
from tests.support.charts import CHART, Object, example_values, render

ROOT = CHART.parents[1]

POOL = example_values("inference-pool")


def pool() -> Object:
    return render(POOL, name="gptj").one("InferencePool")


def test_one_volume_for_many_replicas() -> None:
    values = example_values("shared-volume")
    release = render(values)
    replicas = release.predictor["minReplicas"]
    assert replicas == release.predictor["maxReplicas"] > 1
    claim = release.one("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    # The pull writes it. The replicas read it; KServe mounts it read-only unless told otherwise.
    name = claim["metadata"]["name"]
    [pull] = release.all("Job")
    volumes = pull["spec"]["template"]["spec"]["volumes"]
    assert {"persistentVolumeClaim": {"claimName": name}, "name": "models"} in volumes
    assert {"name": "STORAGE_URI", "value": f"pvc://{name}"} in release.container["env"]
    annotations = release.one("InferenceService")["metadata"]["annotations"]
    assert "storage.kserve.io/readonly" not in annotations
    # An upgrade needs no free GPU, and a node's end takes no more than its share.
    assert release.predictor["deploymentStrategy"]["rollingUpdate"] == (
        {"maxSurge": 0, "maxUnavailable": 1}
    )
    [spread] = release.predictor["topologySpreadConstraints"]
    selected = spread["labelSelector"]["matchLabels"].items()
    assert selected <= release.predictor["labels"].items()
    assert release.has("PodDisruptionBudget")


def test_the_times_of_the_shared_volume_add_up() -> None:
    """What the comment says of eight readers, and the deadline that follows."""
    text = (CHART / "examples" / "shared-volume.yaml").read_text().replace("\n# ", " ")
    each, total, speed = (
        float(re.search(pattern, text)[1])  # type: ignore[index]
        for pattern in (r"read ([\d.]+) GB each", r": (\d+) GB, a quarter", r"at (\d+) MB/s")
    )
    values = example_values("shared-volume")
    assert round(each * values["scaling"]["minReplicas"]) == total
    quarter = 15 * 60
    assert total * 1000 / speed == pytest.approx(quarter, rel=0.1)
    # Pull and read, and as much again for what is slower than thought.
    assert values["progressDeadline"] == f"{3 * quarter // 60}m"


def test_inference_pool() -> None:
    """Field by field: https://gateway-api-inference-extension.sigs.k8s.io/reference/spec/"""
    one = pool()
    assert one["apiVersion"] == "inference.networking.k8s.io/v1"
    assert one["spec"] == {
        "selector": {"matchLabels": POOL["podLabels"]},
        "targetPorts": [{"number": 8080}],
        "endpointPickerRef": {
            "name": "gptj-endpoint-picker",
            "port": {"number": 9002},
            "failureMode": "FailOpen",
        },
    }


def test_the_pool_has_the_replicas_and_nothing_else() -> None:
    release = render(POOL, {"benchmark": {"batchSize": 1}}, name="gptj")
    selected = pool()["spec"]["selector"]["matchLabels"].items()
    service = release.one("InferenceService")
    labels = {**service["metadata"]["labels"], **release.predictor["labels"]}
    assert selected <= labels.items()
    others = [job["spec"]["template"] for job in release.all("Job")] + release.all("Pod")
    assert len(others) == 3
    assert not any(selected <= one["metadata"]["labels"].items() for one in others)
    [target] = pool()["spec"]["targetPorts"]
    assert target["number"] == release.container["ports"][0]["containerPort"]


def test_the_route_leads_to_the_pool() -> None:
    release = render(POOL, name="gptj")
    [rule] = release.one("HTTPRoute")["spec"]["rules"]
    [backend] = rule["backendRefs"]
    assert backend["kind"] == "InferencePool"
    assert backend["name"] == pool()["metadata"]["name"]
    assert "/" not in [match["path"]["value"] for match in rule["matches"]]  # not /metrics


def test_the_picker_finds_its_metrics() -> None:
    """Those that the preset names are made under vLLM's names."""
    text = (CHART / "examples" / "inference-pool.yaml").read_text()
    named = set(re.findall(r"vllm:\w+", text))
    assert named == {
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
    }
    assert named <= {metric.name for metric in metrics_vllm.METRICS}
    args = render(POOL).container["args"]
    assert args[args.index("--metrics_compat") + 1] == "vllm"


def test_the_pickers_configuration_is_whole() -> None:
    """What the docs have a picker told: every plugin that is used is listed."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    [text] = re.findall(
        r"```text\n(apiVersion: .*?kind: EndpointPickerConfig.*?)```", page, re.DOTALL
    )
    config = yaml.safe_load(text)
    listed = {plugin["type"] for plugin in config["plugins"]}
    [profile] = config["schedulingProfiles"]
    used = {plugin["pluginRef"] for plugin in profile["plugins"]} | {config["parser"]["pluginRef"]}
    assert listed == used
