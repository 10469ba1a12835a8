"""What one is told when something is missing, and where."""

from __future__ import annotations

import pytest

from tests.support.charts import merged
from tests.support.cluster import reading
from tests.support.cluster.objects import LATE_ID
from tests.support.cluster.programs import CommandError
from tests.support.cluster.session import KNATIVE, Cluster, ClusterRelease
from tests.support.cluster.values import OTHER, RELEASE

pytestmark = pytest.mark.cluster


def test_the_hub_is_down_at_first(cluster: Cluster, standard: ClusterRelease) -> None:
    """Pull and server wait and say for what; then all goes on without a hand."""
    late = cluster.release("standard", RELEASE, LATE_ID.replace("/", "-"))
    standard.uninstall()
    cluster.set_hub(up=False)
    try:
        late.install("late")
        cluster.wait("the pull tries again", lambda: log_has(late, "pull", "again in"))
        cluster.wait("the server waits", lambda: log_has(late, "", "waiting up to"))
        ready = reading.condition(late.service, "Ready")
        assert ready.get("status") != "True"
    finally:
        cluster.set_hub(up=True)
    late.wait_until_ready()
    assert late.predict(max_new_tokens=8)


def log_has(release: ClusterRelease, job: str, text: str) -> bool:
    """Whether a pod of a Job, or of the predictor, has printed something."""
    pods = release.job_pods(job) if job else release.pods()
    started = [pod for pod in pods if reading.main_container(pod).get("containerID")]
    return any(text in release.log(pod) for pod in started)


def test_a_gated_model(cluster: Cluster, standard: ClusterRelease) -> None:
    standard.ready("as it is")
    other = cluster.release("standard", OTHER)
    try:
        # On the first release's claim: a cluster may have one volume only.
        values = merged(other.values("gated"), {"download": {"enabled": True}})
        cluster.helm.install(OTHER, values)
        end = cluster.wait("the pull's end", lambda: reading.ended(other.job("pull")))
        assert end == "Failed"
        [message] = reading.termination_messages(other.job_pods("pull"))
        assert "gated" in message or "token" in message.lower()
    finally:
        other.uninstall()


def test_no_image(cluster: Cluster, standard: ClusterRelease) -> None:
    standard.uninstall()
    try:
        standard.install("no image")
        reasons = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"}
        cluster.wait(
            "a reason", lambda: reasons & {reading.waiting_reason(pod) for pod in standard.pods()}
        )
    finally:
        standard.uninstall()


def test_no_gpu(cluster: Cluster, standard: ClusterRelease) -> None:
    """No node has what ``gpu.resource`` names: the scheduler says so."""
    standard.uninstall()
    try:
        standard.install("gpu")
        cluster.wait(
            "the scheduler's word",
            lambda: any("Insufficient" in reading.unschedulable(pod) for pod in standard.pods()),
        )
    finally:
        standard.uninstall()


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        pytest.param(change, group, id=change, marks=pytest.mark.cluster(lacks=group))
        for change, group in (
            ("pod monitor", "monitoring.coreos.com/v1"),
            ("keda", "keda.sh/v1alpha1"),
        )
    ],
)
def test_refused_without_an_operator(standard: ClusterRelease, change: str, missing: str) -> None:
    with pytest.raises(CommandError, match=missing):
        standard.install(change)


@pytest.mark.cluster(lacks=KNATIVE)
def test_knative_mode_is_refused_without_knative(cluster: Cluster) -> None:
    other = cluster.release("knative", OTHER)
    with pytest.raises(CommandError, match=KNATIVE):
        other.install("as it is")
    assert OTHER not in cluster.helm.releases()
