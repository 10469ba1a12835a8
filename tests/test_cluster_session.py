"""How the cluster suite drives ``kubectl`` and ``helm``, with stand-ins for both."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.charts import Object
from tests.support.cluster import objects, stand_in
from tests.support.cluster.made_up import made_up_settings
from tests.support.cluster.session import KNATIVE, KSERVE, Cluster
from tests.support.cluster.settings import MissingError
from tests.support.servers import RunningServer


class Folder:
    """What the stand-ins answer from, and what they were called with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "scripts").mkdir()
        for name, text in objects.scripts()["data"].items():
            (path / "scripts" / name).write_text(text)
        self.say("versions", f"v1\n{KSERVE}\n{KNATIVE}\n")
        self.say("releases", "")
        self.have()
        for name in ("kubectl", "helm"):
            words = f"{sys.executable} {stand_in.__file__} {path} {name}"
            (path / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            (path / name).chmod(0o755)

    def say(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def have(self, *found: Object) -> None:
        self.say("objects.json", json.dumps(found))

    @property
    def calls(self) -> list[str]:
        file = self.path / "calls"
        return file.read_text().splitlines() if file.exists() else []

    def cluster(self, **changed: Any) -> Cluster:
        programs = {name: str(self.path / name) for name in ("kubectl", "helm")}
        return Cluster(made_up_settings(**programs, reports=self.path / "reports", **changed))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def item(kind: str, name: str, labels: dict[str, str] | None = None, **parts: Any) -> Object:
    metadata = {"name": name, "labels": labels or {}, "generation": 1}
    return {"kind": kind, "metadata": metadata, **parts}


def test_a_cluster_without_kserve(folder: Folder) -> None:
    folder.say("versions", "v1\n")
    with pytest.raises(MissingError, match=KSERVE):
        folder.cluster()


def test_what_a_run_makes_and_takes_away(folder: Folder) -> None:
    with folder.cluster() as cluster:
        assert cluster.knative
        assert "kubectl wait --for=condition=Ready pod/suite-client --timeout=240s" in folder.calls
        assert "kubectl rollout status deployment/suite-hub --timeout=240s" in folder.calls
        folder.say("releases", "gptj\nother\n")
    ends = [call for call in folder.calls if " uninstall " in call or " delete " in call]
    assert ends == [
        "helm uninstall gptj",
        "helm uninstall other",
        "kubectl delete namespace suite --timeout=240s",
    ]


def test_a_namespace_of_others_is_left_alone(folder: Folder) -> None:
    folder.have(item("namespace", "suite"))
    with pytest.raises(MissingError, match="not the suite's"), folder.cluster():
        pass
    assert not [call for call in folder.calls if "delete" in call or "apply" in call]


def test_a_namespace_of_an_earlier_run_is_made_anew(folder: Folder) -> None:
    folder.have(item("namespace", "suite", objects.OURS))
    with folder.cluster(keep=True):
        pass
    deleted = [call for call in folder.calls if "delete namespace" in call]
    assert len(deleted) == 1


@pytest.mark.parametrize("mode", ["standard", "knative"])
def test_ready_means_the_new_version(folder: Folder, mode: str) -> None:
    container = {"name": "kserve-container", "image": "i", "args": ["new"], "resources": {}}
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    service = item("isvc", "gptj", spec={"predictor": {"containers": [container]}}, status=ready)
    workload = item(
        "ksvc" if mode == "knative" else "deployment",
        "gptj-predictor",
        spec={"template": {"spec": {"containers": [container]}}},
        status=ready
        | {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
        | {"latestReadyRevisionName": "a", "latestCreatedRevisionName": "a"},
    )
    release = folder.cluster().release(mode)
    assert not release.is_ready()
    folder.have(service, workload)
    assert release.is_ready()
    release.ready("precision")
    assert yaml.safe_load((folder.path / "values.yaml").read_text()) == release.values("precision")
    old = {**container, "args": ["old"]}
    folder.have(service, {**workload, "spec": {"template": {"spec": {"containers": [old]}}}})
    assert not release.is_ready()


def test_uninstall_waits_for_the_pods(folder: Folder) -> None:
    pod = item("pods", "gptj-1", {"serving.kserve.io/inferenceservice": "gptj"})
    folder.have(pod, item("pods", "other-1", {"serving.kserve.io/inferenceservice": "other"}))
    release = folder.cluster(patience=0.01).release("standard")
    with pytest.raises(TimeoutError, match="no pod is left"):
        release.uninstall()
    assert "helm uninstall gptj" not in folder.calls  # there is no such release
    folder.say("releases", "gptj")
    folder.have()
    release.uninstall()
    assert "helm uninstall gptj" in folder.calls


def test_jobs_and_their_pods(folder: Folder) -> None:
    pull = {"app.kubernetes.io/instance": "gptj", "app.kubernetes.io/component": "pull"}
    folder.have(item("jobs", "gptj-pull-1", pull), item("pods", "gptj-pull-1-x", pull))
    release = folder.cluster().release("standard")
    assert release.job("pull")["metadata"]["name"] == "gptj-pull-1"
    assert [one["metadata"]["name"] for one in release.job_pods("pull")] == ["gptj-pull-1-x"]
    assert release.job_pods("benchmark") == []


def test_a_node_is_put_back(folder: Folder) -> None:
    cluster = folder.cluster()
    with pytest.raises(ZeroDivisionError), cluster.extended_resource("node-1", "a.b/gpu"):
        raise ZeroDivisionError
    patch, taint, untaint, back = [call for call in folder.calls if "node" in call]
    assert '"op": "add"' in patch
    assert taint == "kubectl taint node node-1 a.b/gpu=yes:NoSchedule --overwrite"
    assert untaint == "kubectl taint node node-1 a.b/gpu=yes:NoSchedule-"
    assert '"op": "remove"' in back


@pytest.mark.process
def test_requests_and_loads(folder: Folder, server: RunningServer) -> None:
    """The scripts in the client's pod, with the demo's server where the service would be."""
    address = {"address": {"url": f"http://127.0.0.1:{server.port}"}}
    folder.have(item("ksvc", "gptj-predictor", status=address))
    release = folder.cluster().release("knative")
    assert release.predict(max_new_tokens=4).startswith("The secret to a happy life is")
    assert release.precision() in ("bfloat16", "float32")
    assert release.sequences() == 0
    with release.load(callers=2, parameters={"max_new_tokens": 2, "details": True}) as load:
        load.wait_for_first_answer()
        summary = load.end()
    assert summary["answered"] >= 2
    assert summary["failed"] == {}
    with release.load(callers=3, requests=1) as load:
        assert load.end(stop=False)["answered"] == 3


def test_the_service_s_address(folder: Folder) -> None:
    release = folder.cluster().release("standard")
    folder.have(item("service", "gptj-predictor", spec={"clusterIP": "10.96.0.7"}))
    assert release.url == "http://gptj-predictor.suite.svc"
    folder.have(item("service", "gptj-predictor", spec={"clusterIP": "None"}))
    assert release.url == "http://gptj-predictor.suite.svc:8080"
    folder.have(item("ksvc", "gptj-predictor", status={"latestReadyRevisionName": "gptj-1"}))
    assert release.revision_url == "http://gptj-1-private.suite.svc"


def test_a_report(folder: Folder) -> None:
    path = folder.cluster().report("test_x")
    text = path.read_text()
    assert "$ kubectl describe isvc,pods,jobs" in text
    assert "$ kubectl get events" in text
