"""The suite against a real cluster: ``make test-cluster``."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.support.cluster.programs import CommandError
from tests.support.cluster.session import Cluster, ClusterRelease
from tests.support.cluster.settings import MissingError, Settings

CLUSTER = pytest.StashKey[Cluster]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Connect to the cluster, and leave out the tests for parts that it has, or has not.

    pytest says how many those are. Without a cluster the run fails and says what it needs.
    """
    if not config.getoption("--cluster"):
        return
    try:
        cluster = Cluster(Settings.read(os.environ))
    except (MissingError, CommandError) as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[CLUSTER] = cluster
    out = []
    for item in items:
        marker = item.get_closest_marker("cluster")
        asked = marker.kwargs if marker else {}
        for name, there in (("has", True), ("lacks", False)):
            if name in asked and (asked[name] in cluster.groups) != there:
                out.append(item)
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The suite's namespace, with hub and client."""
    with request.config.stash[CLUSTER] as running:
        yield running


@pytest.fixture
def standard(cluster: Cluster) -> ClusterRelease:
    """The release, in Standard mode. The other mode's must be gone: a mode cannot change."""
    return of_mode(cluster, "standard")


@pytest.fixture
def knative(cluster: Cluster) -> ClusterRelease:
    """The release, in Knative mode."""
    return of_mode(cluster, "knative")


def of_mode(cluster: Cluster, mode: str) -> ClusterRelease:
    """The release, installed in no other mode."""
    release = cluster.release(mode)
    service = release.service
    if service is not None:
        annotations = service["metadata"]["annotations"]
        if annotations["serving.kserve.io/deploymentMode"].lower() != mode:
            release.uninstall()
    return release


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """When a test fails, write down what the cluster says."""
    report = yield
    if report.failed and CLUSTER in item.config.stash:
        path = item.config.stash[CLUSTER].report(item.name.replace("/", "-"))
        report.sections.append(("cluster", f"what the cluster said is in {path}"))
    return report
