"""How long a request may take, and what becomes of it when a replica stops."""

from __future__ import annotations

import pytest

from tests.support.chart_values import MATRIX, MODES
from tests.support.charts import Release, Values, merged, render

STANDARD, KNATIVE = MODES["standard"], MODES["knative"]


def stopped_by(hook: Values) -> Values:
    """A preStop hook, which Kubernetes runs before it sends the signal."""
    return merged(STANDARD, {"lifecycle": {"preStop": hook}})


def flag(release: Release, name: str) -> str:
    args = release.container["args"]
    return str(args[args.index(name) + 1])


@pytest.mark.parametrize(
    ("values", "delay", "grace", "deadline"),
    [
        (STANDARD, "10", "60", "295"),
        (KNATIVE, "0", "300", "295"),
        (merged(KNATIVE, {"timeoutSeconds": 30}), "0", "30", "25"),
        (merged(KNATIVE, {"timeoutSeconds": 5}), "0", "5", "1"),
        (merged(STANDARD, {"terminationGracePeriodSeconds": 320}), "10", "320", "295"),
        # The default is never as long as the time that there is.
        (merged(STANDARD, {"terminationGracePeriodSeconds": 8}), "4", "8", "295"),
        (merged(STANDARD, {"terminationGracePeriodSeconds": 0}), "0", "1", "295"),
        (merged(STANDARD, {"drainDelaySeconds": 2.5, "timeoutSeconds": 600}), "2.5", "60", "595"),
        (merged(KNATIVE, {"drainDelaySeconds": 3}), "3", "300", "295"),
        (
            merged(STANDARD, {"lifecycle": {"preStop": {"sleep": {"seconds": 20}}}}),
            "10",
            "40",
            "295",
        ),
        (
            merged(STANDARD, {"lifecycle": {"preStop": {"exec": {"command": ["a"]}}}}),
            "10",
            "60",
            "295",
        ),
    ],
)
def test_times(values: Values, delay: str, grace: str, deadline: str) -> None:
    release = render(values)
    assert flag(release, "--drain_delay") == delay
    assert flag(release, "--grace_period") == grace
    assert flag(release, "--max_request_seconds") == deadline


@pytest.mark.slow
def test_the_server_has_the_time_that_the_pod_has(releases: dict[str, Release]) -> None:
    for name, release in releases.items():
        if not release.has("InferenceService"):
            continue
        predictor = release.predictor
        # Knative makes the timeout the pod's terminationGracePeriodSeconds.
        pod = predictor.get("terminationGracePeriodSeconds", predictor["timeout"])
        # A preStop hook runs first.
        hooks = release.container.get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})
        pod -= hooks["preStop"]["sleep"]["seconds"]
        assert float(flag(release, "--grace_period")) == pod, name
        assert float(flag(release, "--drain_delay")) < pod, name
        assert float(flag(release, "--max_request_seconds")) < predictor["timeout"], name
        # The drain delay stands in for a sleep; and Knative sets a preStop of its own.
        assert ("lifecycle" in release.container) == bool(MATRIX[name].get("lifecycle")), name


def test_queue() -> None:
    assert not {"--max_queued_requests", "--max_queued_tokens"} & set(render().container["args"])
    release = render({"queue": {"maxRequests": 1, "maxTokens": 1_000_000}})
    assert flag(release, "--max_queued_requests") == "1"
    assert flag(release, "--max_queued_tokens") == "1000000"
