"""The chart's own ScaledObject for KEDA, and the presets in the examples."""

from __future__ import annotations

import kubernetes.client

from tests.support.charts import Object, Values, example_values, render

KEDA: Values = {
    "deploymentMode": "Standard",
    "cache": {"accessModes": ["ReadWriteMany"]},
    "scaling": {
        "minReplicas": 1,
        "maxReplicas": 4,
        "keda": {"enabled": True, "serverAddress": "http://prometheus:9090"},
    },
}


def scaled(*values: Values) -> Object:
    return dict(render(KEDA, *values).one("ScaledObject")["spec"])


def keda(**values: object) -> Values:
    return {"scaling": {"keda": values}}


def test_scaled_object() -> None:
    """Field by field: https://keda.sh/docs/2.17/reference/scaledobject-spec/"""
    pods = '{namespace="ml",pod=~"demo-predictor-.*"}'
    assert scaled() == {
        "scaleTargetRef": {"name": "demo-predictor"},
        "minReplicaCount": 1,
        "maxReplicaCount": 4,
        "pollingInterval": 15,
        "cooldownPeriod": 600,
        "fallback": {
            "failureThreshold": 3,
            "replicas": 1,
            "behavior": "currentReplicasIfHigher",
        },
        "advanced": {
            "horizontalPodAutoscalerConfig": {
                "behavior": {
                    "scaleDown": {
                        "stabilizationWindowSeconds": 600,
                        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}],
                    }
                }
            }
        },
        "triggers": [
            {
                "type": "prometheus",
                "metricType": "AverageValue",
                "metadata": {
                    "serverAddress": "http://prometheus:9090",
                    "query": f"sum(gptj_requests_waiting{pods}) + sum(gptj_requests_running{pods})",
                    "threshold": "32",
                    "activationThreshold": "0",
                    "ignoreNullValues": "false",
                },
            }
        ],
    }


def test_kserve_leaves_the_replicas_to_keda() -> None:
    for more in ({}, {"scaling": {"maxReplicas": 1}}):
        service = render(KEDA, more).one("InferenceService")
        annotations = service["metadata"]["annotations"]
        assert annotations["serving.kserve.io/autoscalerClass"] == "external"
    assert not render(KEDA, keda(enabled=False)).has("ScaledObject")
    only = {"benchmark": {"only": True, "batchSize": 1}}
    assert not render(KEDA, only).has("ScaledObject")


def test_values_reach_the_scaled_object() -> None:
    spec = scaled(
        keda(
            query="sum(a)",
            threshold=2.5,
            activationThreshold=1,
            pollingInterval=5,
            cooldownPeriod=7,
            fallback={"failureThreshold": 9, "replicas": 3, "behavior": ""},
            behavior=None,
            authenticationRef={"name": "prometheus", "kind": "ClusterTriggerAuthentication"},
            authModes="bearer",
        )
    )
    [trigger] = spec["triggers"]
    assert trigger["metadata"]["query"] == "sum(a)"
    assert trigger["metadata"]["threshold"] == "2.5"
    assert trigger["metadata"]["activationThreshold"] == "1"
    assert trigger["metadata"]["authModes"] == "bearer"
    assert trigger["authenticationRef"] == (
        {"name": "prometheus", "kind": "ClusterTriggerAuthentication"}
    )
    assert (spec["pollingInterval"], spec["cooldownPeriod"]) == (5, 7)
    # A KEDA before 2.17 does not know the field.
    assert spec["fallback"] == {"failureThreshold": 9, "replicas": 3}
    assert "advanced" not in spec


def test_metadata_is_text() -> None:
    """KEDA takes strings there, whatever they look like."""
    spec = scaled(keda(query="1", threshold=1_000_000, activationThreshold=2, authModes="1"))
    for name, value in spec["triggers"][0]["metadata"].items():
        assert isinstance(value, str), name


def test_behavior_is_an_autoscalers() -> None:
    behavior = scaled()["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    parsed = kubernetes.client.V2HorizontalPodAutoscalerBehavior.from_dict(behavior)
    assert kubernetes.client.ApiClient().sanitize_for_serialization(parsed) == behavior


def test_the_name_of_kedas_autoscaler_fits() -> None:
    name = "a" * 53
    release = render(KEDA, name=name)
    assert len(f"keda-hpa-{release.one('ScaledObject')['metadata']['name']}") <= 63
    assert release.one("ScaledObject")["spec"]["scaleTargetRef"]["name"] == f"{name}-predictor"


def test_preset_for_keda() -> None:
    """No request is cut short when a replica goes, and there is something to scrape."""
    values = example_values("keda-autoscaling")
    release = render(values)
    grace = release.predictor["terminationGracePeriodSeconds"]
    assert grace >= values["timeoutSeconds"] + values["drainDelaySeconds"]
    assert release.has("PodMonitor")
    assert release.predictor["deploymentStrategy"]["rollingUpdate"]["maxUnavailable"] == 0
    spec = release.one("ScaledObject")["spec"]
    assert spec["minReplicaCount"] >= 1
    # The first replica counts nothing while it loads, and that must not start a second.
    assert spec["fallback"]["replicas"] == spec["minReplicaCount"]


def test_preset_for_knative() -> None:
    service = render(example_values("knative-autoscaling")).one("InferenceService")
    predictor, annotations = service["spec"]["predictor"], service["metadata"]["annotations"]
    assert predictor["scaleMetric"] == "concurrency"
    assert predictor["scaleTarget"] < predictor["containerConcurrency"]
    prefix = "autoscaling.knative.dev"
    assert annotations[f"{prefix}/scale-down-delay"] == "5m"
    assert annotations[f"{prefix}/scale-to-zero-pod-retention-period"] == "15m"
    assert predictor["minReplicas"] == 0
