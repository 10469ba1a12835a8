"""podLabels, podAnnotations, envFrom, lifecycle, serviceAccount.automount, canaryTrafficPercent."""

from __future__ import annotations

import pytest

from tests.support.chart_values import MANY, MODES
from tests.support.charts import Object, Values, render, round_trip

BENCHMARK: Values = {"benchmark": {"batchSize": 1}}


@pytest.mark.parametrize("mode", MODES)
def test_labels_and_annotations_of_the_pods(mode: str) -> None:
    """KServe gives its pods the predictor's, and so the pods of the Jobs have none of them."""
    own: Values = {"podLabels": {"pool": "texts"}, "podAnnotations": {"example.com/mesh": "on"}}
    release = render(MODES[mode], MANY, BENCHMARK, own)
    assert release.predictor["labels"] == own["podLabels"]
    assert release.predictor["annotations"] == own["podAnnotations"]
    for one in release.objects:
        assert "pool" not in one["metadata"]["labels"], one["metadata"]["name"]
    for job in release.all("Job"):
        metadata = job["spec"]["template"]["metadata"]
        assert "pool" not in metadata["labels"]
        assert "example.com/mesh" not in metadata["annotations"]
    assert not {"labels", "annotations"} & set(render(MODES[mode]).predictor)


def test_variables_from_a_secret() -> None:
    given = [{"secretRef": {"name": "proxy", "optional": True}}, {"configMapRef": {"name": "a"}}]
    release = render(MANY, BENCHMARK, {"envFrom": given})
    containers = [pod["containers"][0] for pod in release.pods()]
    with_them = {one["name"] for one in containers if one.get("envFrom") == given}
    assert with_them == {"kserve-container", "pull", "benchmark"}
    assert {one["name"] for one in containers if "envFrom" not in one} == {"test"}
    # A Job that has other variables is another Job, and a benchmark has other results.
    without = render(MANY, BENCHMARK)
    names = [{job["metadata"]["name"] for job in one.all("Job")} for one in (release, without)]
    assert not names[0] & names[1]
    outputs = {output_folder(one.one("Job", "benchmark")) for one in (release, without)}
    assert len(outputs) == 2


def output_folder(job: Object) -> str:
    [container] = job["spec"]["template"]["spec"]["containers"]
    return str(container["args"][container["args"].index("--output") + 1])


@pytest.mark.parametrize(
    ("mode", "automount", "pod"),
    [
        ("standard", False, False),
        ("standard", True, True),
        ("knative", False, False),
        # Knative refuses true; the service account has it.
        ("knative", True, None),
    ],
)
def test_a_token_for_the_cluster(mode: str, automount: bool, pod: bool | None) -> None:
    release = render(MODES[mode], MANY, BENCHMARK, {"serviceAccount": {"automount": automount}})
    assert release.one("ServiceAccount")["automountServiceAccountToken"] is automount
    assert release.predictor.get("automountServiceAccountToken") is pod
    others = [one for one in release.pods() if one != release.predictor]
    assert [one["automountServiceAccountToken"] for one in others] == [False] * 3


def test_no_token_with_an_account_of_ones_own() -> None:
    """Kubernetes mounts one unless account or pod says no, and the account is not the chart's."""
    own = {"serviceAccount": {"create": False, "name": "theirs"}}
    for mode in MODES.values():
        assert render(mode, own).predictor["automountServiceAccountToken"] is False


def test_hooks_of_the_container() -> None:
    hooks = {
        "postStart": {"exec": {"command": ["touch", "/tmp/started"]}},
        "preStop": {"sleep": {"seconds": 5}},
    }
    release = render(MODES["standard"], MANY, BENCHMARK, {"lifecycle": hooks})
    assert release.container["lifecycle"] == hooks
    with_hooks = [pod for pod in release.pods() if "lifecycle" in pod["containers"][0]]
    assert with_hooks == [release.predictor]
    assert "lifecycle" not in render(MODES["standard"]).container


@pytest.mark.parametrize("percent", [0, 20, 100])
def test_canary(percent: int) -> None:
    release = render({"canaryTrafficPercent": percent})
    assert release.predictor["canaryTrafficPercent"] == percent
    service = release.one("InferenceService")
    assert round_trip(service, "V1beta1InferenceService") == service
    # The old version must run, so the notes have no recipe that stops it first.
    assert f"the new version gets {percent} %" in release.notes
    assert "serving.kserve.io/stop" not in release.notes


def test_without_a_canary() -> None:
    release = render()
    assert "canaryTrafficPercent" not in release.predictor
    assert "canary" not in release.notes
    assert "serving.kserve.io/stop" in release.notes
