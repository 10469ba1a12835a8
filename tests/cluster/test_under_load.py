"""Standard mode: nothing that a platform does to a service fails a request."""

from __future__ import annotations

import time

import pytest

from tests.support.cluster.session import Cluster, ClusterRelease
from tests.support.cluster.values import RELEASE

pytestmark = pytest.mark.cluster

#: Some seconds of work for the demo, in the V1 protocol's one answer.
LONG = {"min_new_tokens": 1900, "max_new_tokens": 1900, "temperature": 0, "details": True}


def test_rolling_restart(standard: ClusterRelease) -> None:
    """Two replicas are replaced one after the other, because a variable of theirs changed."""
    standard.ready("two replicas")
    before = {pod["metadata"]["name"] for pod in standard.pods()}
    with standard.load(callers=8) as load:
        load.wait_for_first_answer()
        standard.ready("two replicas, restarted")
        time.sleep(15)  # longer than the drain delay
        summary = load.end()
    assert not before & {pod["metadata"]["name"] for pod in standard.pods()}
    assert summary["failed"] == {}
    assert summary["answered"] > 8


def test_one_of_two_pods_is_deleted(cluster: Cluster, standard: ClusterRelease) -> None:
    standard.ready("two replicas")
    with standard.load(callers=8) as load:
        load.wait_for_first_answer()
        cluster.kubectl("delete", "pod", standard.pods()[0]["metadata"]["name"])
        cluster.wait("two pods again", standard.is_ready)
        summary = load.end()
    assert summary["failed"] == {}


def test_uninstall(cluster: Cluster, standard: ClusterRelease) -> None:
    """What runs is answered, cut short if need be, before the pod is killed."""
    standard.ready("as it is")
    grace = standard.values("as it is")["terminationGracePeriodSeconds"]
    with standard.load(callers=4, instances=32, requests=1, parameters=LONG) as load:
        cluster.wait("all four", lambda: standard.sequences() >= 4 * 32, pause=0.2)
        started = time.monotonic()
        cluster.helm("uninstall", RELEASE)
        summary = load.end(stop=False)
        took = time.monotonic() - started
    assert (summary["answered"], summary["failed"]) == (4, {})
    assert set(summary["finish_reasons"]) <= {"length", "shutdown"}
    assert took < grace + 5
    cluster.wait("no pod is left", lambda: not standard.pods(), grace + 30)
