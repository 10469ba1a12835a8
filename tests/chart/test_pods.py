"""Rules for every pod: security, volumes, resources, and where it may run."""

from __future__ import annotations

import pytest

from tests.support.chart_values import EVERYTHING, MANY, MODES
from tests.support.charts import Object, Release, Values, render


@pytest.mark.slow
def test_restricted_pod_security(releases: dict[str, Release]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted"""
    for release in releases.values():
        for pod in release.pods():
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
            assert "initContainers" not in pod
            for container in pod["containers"]:
                context = container["securityContext"]
                assert context["allowPrivilegeEscalation"] is False
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert context["runAsNonRoot"] is True
                assert context["seccompProfile"] == {"type": "RuntimeDefault"}
                assert context["readOnlyRootFilesystem"] is True
            for volume in pod.get("volumes", []):
                kinds = {"emptyDir", "persistentVolumeClaim", "configMap", "secret"}
                assert set(volume) - {"name"} <= kinds


@pytest.mark.slow
def test_every_container_writes_only_where_it_may(releases: dict[str, Release]) -> None:
    for release in releases.values():
        for pod in release.pods():
            mounts = {
                mount["mountPath"]: mount for mount in pod["containers"][0].get("volumeMounts", [])
            }
            if pod["containers"][0]["name"] != "test":
                assert not mounts["/tmp"].get("readOnly")
            names = {volume["name"] for volume in pod.get("volumes", [])}
            assert {mount["name"] for mount in mounts.values()} == names


@pytest.mark.slow
def test_the_reason_of_an_end_is_in_the_pods_status(releases: dict[str, Release]) -> None:
    """The file that the program writes to, or the log where it could not write."""
    for release in releases.values():
        for pod in release.pods():
            [container] = pod["containers"]
            assert container["terminationMessagePath"] == "/dev/termination-log"
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.slow
def test_all_four_resources_are_set(releases: dict[str, Release]) -> None:
    for release in releases.values():
        for pod in release.pods():
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(pod["containers"][0]["resources"][kind])


@pytest.mark.slow
def test_all_pods_share_the_predictors_placement(releases: dict[str, Release]) -> None:
    """Pods without a GPU tolerate the taint of GPU nodes, and prefer these nodes."""
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    for release in releases.values():
        if not release.has("InferenceService"):
            continue
        predictor = release.predictor
        node = predictor.get("affinity", {}).get("nodeAffinity", {})
        for pod in release.pods():
            for key in ("nodeSelector", "priorityClassName", "serviceAccountName"):
                assert pod.get(key) == predictor.get(key)
            assert pod.get("affinity", {}).get("nodeAffinity", {}).get(required) == (
                node.get(required)
            )
            allowed = pod.get("tolerations", [])
            assert all(one in allowed for one in predictor.get("tolerations", []))
            with_gpu, requests = (
                "nvidia.com/gpu" in one["containers"][0]["resources"]["limits"]
                for one in (predictor, pod)
            )
            tolerates = {"key": "nvidia.com/gpu", "operator": "Exists"} in allowed
            assert tolerates or requests or not with_gpu
    anywhere = render().one("Job")["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    [wish] = anywhere["preferredDuringSchedulingIgnoredDuringExecution"]
    assert wish["preference"]["matchExpressions"][0]["key"] == "nvidia.com/gpu.product"
    on_cpus = render({"gpu": {"count": 0}}).one("Job")["spec"]["template"]["spec"]
    assert not {"affinity", "tolerations"} & set(on_cpus)


def test_gpu_and_region_are_in_every_term() -> None:
    """Terms are alternatives, so each needs the labels."""
    affinity = render(EVERYTHING).predictor["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    gpu = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["A40", "A100"]}
    region = {"key": "topology.kubernetes.io/region", "operator": "In", "values": ["ORD1"]}
    assert [term["matchExpressions"] for term in terms] == [
        [{"key": "a", "operator": "Exists"}, gpu, region],
        [gpu, region],
    ]
    assert "matchFields" in terms[1]


@pytest.mark.parametrize(
    ("count", "devices"),
    [(0, None), (1, "cuda:0"), (2, "cuda:0,cuda:1"), (3, "cuda:0,cuda:1,cuda:2")],
)
def test_the_requested_gpus_are_named(count: int, devices: str | None) -> None:
    """With none that can be used the server ends, and does not serve on the CPU."""
    release = render({"gpu": {"count": count}, "benchmark": {"batchSize": 1}}, MANY)
    [benchmark] = release.one("Job", "benchmark")["spec"]["template"]["spec"]["containers"]
    [pull] = release.one("Job", "pull")["spec"]["template"]["spec"]["containers"]
    assert "--device" not in pull["args"]
    for container in (release.container, benchmark):
        args = container["args"]
        assert args.count("--device") == (devices is not None)
        if devices:
            assert args[args.index("--device") + 1] == devices
            assert len(devices.split(",")) == int(
                container["resources"]["limits"]["nvidia.com/gpu"]
            )


TAINT = {"key": "amd.com/gpu", "operator": "Exists"}


@pytest.mark.parametrize(
    ("mode", "tolerate", "predictor"),
    [("standard", False, True), ("knative", False, False), ("knative", True, True)],
)
@pytest.mark.parametrize("given", [[], [TAINT], [{"key": "a"}]])
def test_the_taint_of_gpu_nodes(
    mode: str, tolerate: bool, predictor: bool, given: list[Object]
) -> None:
    """Knative's predictor needs a flag for it; all other pods tolerate it without a word."""
    gpu = {"resource": "amd.com/gpu", "tolerateTaint": tolerate}
    values: Values = {"gpu": gpu, "benchmark": {"batchSize": 1}, "tolerations": given}
    release = render(MODES[mode], MANY, values)
    wanted = given if TAINT in given else [*given, TAINT]
    assert release.predictor.get("tolerations", []) == (wanted if predictor else given)
    others = [pod for pod in release.pods() if pod != release.predictor]
    assert [pod["tolerations"] for pod in others] == [wanted] * 3
    none = render(MODES[mode], MANY, values, {"gpu": {"count": 0}})
    assert [pod.get("tolerations", []) for pod in none.pods()] == [given] * 4


def test_gpus() -> None:
    assert render().container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    none = render({"gpu": {"count": 0}, "benchmark": {"batchSize": 1}}, MANY)
    for pod in none.pods():
        assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]
    gpu = {"count": 2, "resource": "amd.com/gpu"}
    two = render({"gpu": gpu, "benchmark": {"batchSize": 1}}, MANY)
    assert two.container["resources"]["requests"]["amd.com/gpu"] == "2"
    [benchmark] = two.one("Job", "benchmark")["spec"]["template"]["spec"]["containers"]
    [pull] = two.one("Job", "pull")["spec"]["template"]["spec"]["containers"]
    assert benchmark["resources"]["limits"]["amd.com/gpu"] == "2"
    # A pull with the only GPU would keep the predictor from starting.
    assert "amd.com/gpu" not in pull["resources"]["limits"]
