"""Knative mode: to zero and back, and what happens under load."""

from __future__ import annotations

import time

import pytest

from tests.support.cluster.session import KNATIVE, Cluster, ClusterRelease
from tests.support.cluster.values import RELEASE

pytestmark = pytest.mark.cluster(has=KNATIVE)


def at_zero(cluster: Cluster, knative: ClusterRelease) -> None:
    """Wait until the last replica is gone: retention, Knative's stable window, and a little."""
    cluster.wait("no replica is left", lambda: not knative.pods(), 300)


def test_ready_and_predict(cluster: Cluster, knative: ClusterRelease) -> None:
    knative.ready("as it is")
    assert knative.predict(temperature=0, max_new_tokens=12).startswith("The secret to a happy")
    assert "Succeeded" in cluster.helm("test", RELEASE, "--timeout", "5m")


def test_to_zero_and_back(cluster: Cluster, knative: ClusterRelease) -> None:
    knative.ready("as it is")
    at_zero(cluster, knative)
    assert knative.is_ready()  # READY says that it would answer
    assert knative.predict(max_new_tokens=8)
    assert len(knative.pods()) == 1


def test_a_burst_from_zero(cluster: Cluster, knative: ClusterRelease) -> None:
    knative.ready("as it is")
    at_zero(cluster, knative)
    with knative.load(callers=60, seconds=25) as load:
        summary = load.end(stop=False)
    assert summary["failed"] == {}
    assert summary["answered"] >= 60


def test_upgrade_under_load(cluster: Cluster, knative: ClusterRelease) -> None:
    knative.ready("as it is")
    with knative.load(callers=6) as load:
        load.wait_for_first_answer()
        knative.ready("new revision")
        time.sleep(20)  # the old revision has ended
        summary = load.end()
    assert summary["failed"] == {}


def test_the_only_pod_is_deleted_under_load(cluster: Cluster, knative: ClusterRelease) -> None:
    knative.ready("as it is")
    with knative.load(callers=6) as load:
        load.wait_for_first_answer()
        for pod in knative.pods():
            cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
        time.sleep(30)
        summary = load.end()
    assert summary["failed"] == {}


def test_uninstall_under_load(cluster: Cluster, knative: ClusterRelease) -> None:
    """What runs is answered before Knative's timeout, which is the pod's grace period.

    The ingress forgets the service at once, whatever still runs. So these callers ask the
    revision's queue proxy.
    """
    knative.ready("as it is")
    timeout = knative.values("as it is")["timeoutSeconds"]
    assert knative.predict(max_new_tokens=8)  # a replica runs
    parameters = {"min_new_tokens": 1900, "max_new_tokens": 1900, "details": True}
    flags = {"model": knative.model, "callers": 4, "instances": 16, "requests": 1}
    with cluster.load(knative.revision_url, parameters=parameters, **flags) as load:
        cluster.wait("all four", lambda: knative.sequences() >= 4 * 16, pause=0.2)
        started = time.monotonic()
        cluster.helm("uninstall", RELEASE)
        summary = load.end(stop=False)
    assert (summary["answered"], summary["failed"]) == (4, {})
    assert time.monotonic() - started < timeout + 5
    cluster.wait("no pod is left", lambda: not knative.pods(), timeout + 60)
