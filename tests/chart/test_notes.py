"""The notes that Helm prints after an install."""

from __future__ import annotations

import re

import pytest

from tests.support.chart_values import MODES
from tests.support.charts import CHART, Release, Values, merged, render


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ({}, []),
        ({"gpu": {"labelValues": ["A40"]}}, ["podspec-affinity"]),
        ({"region": {"values": ["x"]}}, ["podspec-affinity"]),
        ({"nodeSelector": {"a": "b"}}, ["podspec-nodeselector"]),
        ({"tolerations": [{"operator": "Exists"}]}, ["podspec-tolerations"]),
        ({"gpu": {"tolerateTaint": True}}, ["podspec-tolerations"]),
        ({"gpu": {"tolerateTaint": True, "count": 0}}, []),
        (
            {"topologySpreadConstraints": [{"maxSkew": 1}]},
            ["podspec-topologyspreadconstraints"],
        ),
        ({"priorityClassName": "p"}, ["podspec-priorityclassname"]),
        ({"runtimeClassName": "nvidia"}, ["podspec-runtimeclassname"]),
        ({"runtimeClassName": "nvidia", "gpu": {"count": 0}}, []),
        ({"cache": {"mountVia": "volume"}}, ["podspec-persistent-volume-claim"]),
        (
            {"cache": {"mountVia": "volume", "readOnly": False}},
            ["podspec-persistent-volume-claim", "podspec-persistent-volume-write"],
        ),
        ({"cache": {"readOnly": False}}, []),
        ({"securityContext": {"runAsGroup": 1}}, ["podspec-securitycontext"]),
        (
            {"extraEnv": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "b"}}}]},
            ["podspec-fieldref"],
        ),
        (
            {
                "extraVolumes": [{"name": "a", "csi": {"driver": "d"}}],
                "extraVolumeMounts": [{"name": "a", "mountPath": "/a"}],
            },
            ["podspec-volumes-csi"],
        ),
        (
            {
                "extraVolumes": [{"name": "a", "hostPath": {"path": "/"}}],
                "extraVolumeMounts": [{"name": "a", "mountPath": "/a"}],
            },
            ["podspec-volumes-hostpath"],
        ),
        ({"shm": "1Gi"}, []),
    ],
)
def test_knative_flags(values: Values, flags: list[str]) -> None:
    notes = render(values).notes
    named = [word for word in notes.replace('"', " ").split() if word.startswith("kubernetes.")]
    assert named == [f"kubernetes.{flag}" for flag in flags]
    assert ("config-features" in notes) == bool(flags)
    assert "config-features" not in render(merged(values, MODES["standard"])).notes


def test_timeouts() -> None:
    patch = '"revision-response-start-timeout-seconds":"500"'
    assert patch in render({"timeoutSeconds": 500}).notes
    assert patch not in render({"timeoutSeconds": 500}, MODES["standard"]).notes
    assert "revision-response-start" not in render().notes


@pytest.mark.slow
def test_commands_name_what_is_made(releases: dict[str, Release]) -> None:
    for name, release in releases.items():
        for job in release.all("Job"):
            assert f"-f job/{job['metadata']['name']}" in release.notes, name
        service = release.has("InferenceService")
        assert ("kubectl get isvc demo -n ml --watch" in release.notes) == service
        assert ("helm test demo -n ml" in release.notes) == service
        delete = "kubectl delete pvc demo-models -n ml" in release.notes
        claims = release.all("PersistentVolumeClaim")
        assert delete == any("annotations" in claim["metadata"] for claim in claims), name
        if service:
            recipe = "serving.kserve.io/stop=true" in release.notes
            mode = release.one("InferenceService")["metadata"]["annotations"]
            canary = "canaryTrafficPercent" in release.predictor
            knative = mode["serving.kserve.io/deploymentMode"] == "Knative"
            assert recipe == (knative and not canary), name
            assert ("canaryTrafficPercent=100" in release.notes) == canary, name


def test_a_failed_pull_is_run_again_by_another_job() -> None:
    """With the notes' value there is a Job of another name, and Helm deletes the failed one."""
    release = render()
    [command] = [line for line in release.notes.splitlines() if "download.verify" in line]
    flag, _, text = command.partition("--set-string ")[2].partition("=")
    assert command.startswith("  helm upgrade demo ... -n ml ")
    assert (flag, text) == ("download.verify", "$(date +%s)")
    again = render({"download": {"verify": "1795000000"}})
    assert again.one("Job")["metadata"]["name"] != release.one("Job")["metadata"]["name"]
    none: Values = {"download": {"enabled": False}, "cache": {"existingClaim": "theirs"}}
    assert "download.verify" not in render(none).notes


def test_the_readme_lists_the_knative_flags() -> None:
    template = (CHART / "templates" / "_knative_flags.tpl").read_text()
    flags = set(re.findall(r'"(kubernetes\.[a-z-]+)"', template))
    assert len(flags) >= 10
    assert set(re.findall(r"`(kubernetes\.[a-z-]+)`", (CHART / "README.md").read_text())) == flags
