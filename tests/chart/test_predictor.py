"""The InferenceService: its modes, scaling, probes and names."""

from __future__ import annotations

import pytest

from gptj_predictor.settings import ServerSettings, wire_name
from tests.support.chart_values import MODES, SCALINGS
from tests.support.charts import Values, render, round_trip


@pytest.mark.parametrize(
    ("model_id", "name"),
    [("EleutherAI/gpt-j-6B", ""), ("a.b/C_d", ""), ("x/y", "mine")],
)
def test_model_name(model_id: str, name: str) -> None:
    release = render({"model": {"id": model_id, "name": name}})
    args = release.container["args"]
    served = args[args.index("--model_name") + 1]
    assert served == (name or wire_name(model_id))
    for probe in ("startupProbe", "readinessProbe"):
        assert release.container[probe]["httpGet"]["path"] == f"/v1/models/{served}"
    assert f"/v1/models/{served}:predict" in release.notes


def test_knative() -> None:
    release = render({"scaling": {"targetUtilization": 70}})
    annotations = release.one("InferenceService")["metadata"]["annotations"]
    assert annotations == {
        "serving.kserve.io/deploymentMode": "Knative",
        "serving.knative.dev/progress-deadline": "30m",
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period": "10m",
        "autoscaling.knative.dev/target-utilization-percentage": "70",
    }
    # Fields of the pod that Knative refuses, or takes behind a flag that is off.
    assert not {
        "securityContext",
        "deploymentStrategy",
        "terminationGracePeriodSeconds",
        "affinity",
    } & set(release.predictor)
    assert not {"lifecycle"} & set(release.container)
    assert release.predictor["containerConcurrency"] == (
        ServerSettings.model_fields["max_batch_size"].default
    )


def test_standard() -> None:
    values = MODES["standard"]
    release = render(values)
    annotations = release.one("InferenceService")["metadata"]["annotations"]
    assert annotations == {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "none",
    }
    assert release.predictor["deploymentStrategy"] == {"type": "Recreate"}
    assert release.predictor["terminationGracePeriodSeconds"] == 60
    assert release.predictor["securityContext"]["fsGroup"] == 65532
    more = render(values, SCALINGS["four"]).one("InferenceService")["metadata"]["annotations"]
    assert more == {"serving.kserve.io/deploymentMode": "Standard"}
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}
    other = {"deploymentStrategy": rolling, "terminationGracePeriodSeconds": 0}
    release = render(values, other, {"scaling": {"autoscalerClass": "external"}})
    assert release.predictor["deploymentStrategy"] == rolling
    assert release.predictor["terminationGracePeriodSeconds"] == 0
    annotations = release.one("InferenceService")["metadata"]["annotations"]
    assert annotations["serving.kserve.io/autoscalerClass"] == "external"


def test_keda() -> None:
    metric = {
        "type": "External",
        "external": {
            "metric": {
                "backend": "prometheus",
                "serverAddress": "http://prometheus",
                "query": "sum(rate(request_predict_seconds_count[1m]))",
            },
            "target": {"type": "Value", "value": "1"},
        },
    }
    scaling: Values = {
        "minReplicas": 0,
        "autoscalerClass": "keda",
        "autoScaling": {"metrics": [metric]},
    }
    release = render({"deploymentMode": "Standard", "scaling": scaling})
    service = release.one("InferenceService")
    assert release.predictor["minReplicas"] == 0
    assert release.predictor["autoScaling"] == scaling["autoScaling"]
    assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    assert round_trip(service, "V1beta1InferenceService") == service


def test_metrics() -> None:
    release = render({"scaling": {"scaleMetric": "rps", "scaleTarget": 5}})
    assert (release.predictor["scaleMetric"], release.predictor["scaleTarget"]) == ("rps", 5)


@pytest.mark.parametrize("mode", MODES)
def test_probes(mode: str) -> None:
    container = render(MODES[mode]).container
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == container["ports"][0]["containerPort"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({}, 1740),
        ({"progressDeadline": "1h30m"}, 5340),
        ({"probes": {"startup": {"periodSeconds": 7}}}, 1736),
        ({"probes": {"startup": {"failureThreshold": 360}}}, 1800),
        ({"progressDeadline": "2m"}, 60),
    ],
)
def test_startup_budget(values: Values, seconds: int) -> None:
    container = render(values).container
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == seconds
    args = container["args"]
    assert args[args.index("--wait_for_snapshot") + 1] == str(seconds)
