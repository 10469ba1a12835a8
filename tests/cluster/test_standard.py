"""Standard mode: from ``helm install`` to what can go wrong with a running service."""

from __future__ import annotations

import json

import pytest

from tests.support.cluster import reading
from tests.support.cluster.objects import DAMAGED_ID
from tests.support.cluster.programs import CommandError
from tests.support.cluster.session import Cluster, ClusterRelease
from tests.support.cluster.values import FETCHED, GPU, OTHER, RELEASE

pytestmark = pytest.mark.cluster

CLAIM = f"{RELEASE}-models"
DAMAGED_NAME = DAMAGED_ID.replace("/", "-")


def test_ready_and_predict(cluster: Cluster, standard: ClusterRelease) -> None:
    """As the documentation says: install, wait for the condition, ask."""
    notes = standard.install("as it is")
    assert f"helm test {RELEASE}" in notes
    cluster.kubectl("wait", "--for=condition=Ready", f"isvc/{RELEASE}", "--timeout=300s")
    standard.wait_until_ready()
    assert standard.predict(temperature=0, max_new_tokens=12).startswith("The secret to a happy")
    assert standard.precision() == "bfloat16"
    assert reading.restarts(standard.pods()) == 0


def test_helm_test(cluster: Cluster, standard: ClusterRelease) -> None:
    standard.ready("as it is")
    assert "Succeeded" in cluster.helm("test", RELEASE, "--timeout", "5m")
    assert cluster.pods("app.kubernetes.io/component=test") == []


def test_benchmark_job(cluster: Cluster, standard: ClusterRelease) -> None:
    standard.ready("benchmark")
    end = cluster.wait("the benchmark", lambda: reading.ended(standard.job("benchmark")), 600)
    assert end == "Complete"
    with cluster.volume(CLAIM):
        files = cluster.run_on_volume("find", "/mnt/models/benchmarks", "-name", "results.json")
        [path] = files.split()
        cells = json.loads(cluster.run_on_volume("cat", path))["cells"]
    assert [(one["tokens"], one["status"]) for one in cells] == [(128, "done"), (256, "done")]


def test_precision_change_and_rollback(cluster: Cluster, standard: ClusterRelease) -> None:
    standard.ready("as it is")
    history = json.loads(cluster.helm("history", RELEASE, "--output", "json"))
    standard.ready("precision")
    assert standard.precision() == "float16"
    cluster.helm("rollback", RELEASE, str(history[-1]["revision"]))
    standard.wait_until_ready()
    cluster.wait("the old precision", lambda: standard.precision() == "bfloat16")


def test_kept_claim(cluster: Cluster, standard: ClusterRelease) -> None:
    """The next install finds the weights, and downloads and converts nothing."""
    standard.ready("as it is")
    cluster.helm("test", RELEASE, "--timeout", "5m")
    standard.uninstall()
    left = "isvc,pods,jobs,pvc,services,serviceaccounts"
    selector = f"app.kubernetes.io/instance={RELEASE}"
    cluster.wait("only the claim is left", lambda: len(cluster.kubectl.all(left, selector)) == 1)
    [claim] = cluster.kubectl.all(left, selector)
    assert (claim["kind"], claim["metadata"]["name"]) == ("PersistentVolumeClaim", CLAIM)
    standard.ready("as it is")
    cluster.wait("the pull", lambda: reading.ended(standard.job("pull")) == "Complete")
    [pull] = standard.job_pods("pull")
    assert FETCHED not in standard.log(pull)


def test_another_user(cluster: Cluster, standard: ClusterRelease) -> None:
    """A second release on the same claim, whose pods have another user id."""
    standard.ready("as it is")
    other = cluster.release("standard", OTHER)
    try:
        other.ready("other user")
        [pod] = other.pods()
        assert pod["spec"]["containers"][0]["securityContext"]["runAsUser"] == 70001
        assert other.predict(max_new_tokens=8)
    finally:
        other.uninstall()


def test_damage_and_mending(cluster: Cluster, standard: ClusterRelease) -> None:
    """The message is where people look and names the value; the value mends it."""
    damaged = cluster.release("standard", RELEASE, DAMAGED_NAME)
    damaged.ready("damaged")
    old = damaged.job("pull")["metadata"]["name"]
    with cluster.volume(CLAIM):
        script = ("python", "/scripts/damage.py", f"/mnt/models/{DAMAGED_NAME}")
        assert cluster.run_on_volume(*script).strip().endswith(".safetensors")
    cluster.kubectl("delete", "pod", "--selector", f"serving.kserve.io/inferenceservice={RELEASE}")
    [message] = cluster.wait(
        "a message of the pod's end",
        lambda: reading.termination_messages(damaged.pods())[:1],
    )
    assert ".safetensors" in message
    assert "download.verify" in message
    cluster.wait("KServe's word of it", lambda: reading.failure_info(damaged.service or {}), 60)
    damaged.ready("mended")
    assert damaged.job("pull")["metadata"]["name"] != old
    assert damaged.predict(max_new_tokens=8)


def test_memory_limit(standard: ClusterRelease) -> None:
    """The largest load that the limits admit fits into the container's memory."""
    standard.ready("memory limit")
    parameters = {"min_new_tokens": 1900, "max_new_tokens": 1900, "temperature": 1}
    with standard.load(callers=3, instances=32, requests=1, parameters=parameters) as load:
        summary = load.end(stop=False)
    assert (summary["answered"], summary["failed"]) == (3, {})
    assert reading.restarts(standard.pods()) == 0
    assert [one["reason"] for one in reading.terminations(standard.pods())] == []


def test_device_refused(cluster: Cluster, standard: ClusterRelease) -> None:
    """A pod that has a GPU, as far as Kubernetes knows, and finds none: it ends and says why.

    The node has the taint that GPU nodes have; the predictor tolerates it.
    """
    standard.ready("as it is")
    node = standard.pods()[0]["spec"]["nodeName"]  # where the volume is
    standard.uninstall()
    with cluster.extended_resource(node, GPU):
        standard.install("gpu")
        [message] = cluster.wait(
            "a message of the pod's end",
            lambda: reading.termination_messages(standard.pods())[:1],
        )
        [pod] = standard.pods()
        arguments = pod["spec"]["containers"][0]["args"]
        assert arguments[arguments.index("--device") + 1] == "cuda:0"
        assert pod["spec"]["nodeName"] == node
        assert "cuda" in message.lower()
        assert not standard.is_ready()
        standard.uninstall()


def test_the_crashing_pod_does_not_hold_up_a_drain(
    cluster: Cluster, standard: ClusterRelease
) -> None:
    standard.uninstall()
    standard.install("crashing")
    cluster.wait("a restart", lambda: reading.restarts(standard.pods()) > 0)
    [pod] = standard.pods()
    node = pod["spec"]["nodeName"]
    selector = f"serving.kserve.io/inferenceservice={RELEASE}"
    try:
        # The node of others too: only the pods of this release are evicted.
        words = ("drain", node, "--pod-selector", selector, "--delete-emptydir-data")
        cluster.kubectl(*words, "--ignore-daemonsets", "--timeout=60s")
        names = {one["metadata"]["name"] for one in standard.pods()}
        assert pod["metadata"]["name"] not in names
    finally:
        cluster.kubectl("uncordon", node)
        standard.uninstall()


def test_a_healthy_pod_is_drained_only_with_another_beside_it(
    cluster: Cluster, standard: ClusterRelease
) -> None:
    """The same budget still protects: this is what a drain waits for."""
    standard.ready("as it is")
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "suite-strict"},
        "spec": {
            "minAvailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {"serving.kserve.io/inferenceservice": RELEASE}},
        },
    }
    cluster.kubectl.apply(budget)
    [pod] = standard.pods()
    selector = f"serving.kserve.io/inferenceservice={RELEASE}"
    try:
        words = ["drain", pod["spec"]["nodeName"], "--pod-selector", selector]
        words += ["--delete-emptydir-data", "--ignore-daemonsets", "--timeout=15s"]
        with pytest.raises(CommandError, match="disruption budget"):
            cluster.kubectl(*words)
    finally:
        cluster.kubectl("uncordon", pod["spec"]["nodeName"])
        cluster.kubectl("delete", "poddisruptionbudget", "suite-strict")
