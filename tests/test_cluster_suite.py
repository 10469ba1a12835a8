"""What the cluster suite is made of, without a cluster: settings, files, manifests, reading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.charts import Object, render, round_trip
from tests.support.cluster import objects, reading, values
from tests.support.cluster.made_up import made_up_settings
from tests.support.cluster.programs import CommandError, Helm, Kubectl, wait
from tests.support.cluster.settings import VARIABLES, Image, MissingError, Settings
from tests.support.documents import ROOT

#: The oldest version that the chart allows, and the newest with a schema.
KUBERNETES = ("1.27", "1.37")
CUSTOM = {"InferenceService", "PodMonitor", "ScaledObject"}


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("gptj:1", Image("gptj", "1")),
        ("registry:5000/a/gptj:1.2-cpu", Image("registry:5000/a/gptj", "1.2-cpu")),
        ("a/gptj@sha256:0f", Image("a/gptj", digest="sha256:0f")),
    ],
)
def test_image(name: str, image: Image) -> None:
    assert Image.parse(name) == image
    assert str(image) == name


@pytest.mark.parametrize("name", ["", "gptj", "registry:5000/gptj", ":1", "gptj:"])
def test_not_an_image(name: str) -> None:
    with pytest.raises(MissingError, match="CLUSTER_IMAGE"):
        Image.parse(name)


def programs(folder: Path) -> dict[str, str]:
    """An environment with the two programs, and what must be given."""
    for name in ("kubectl", "helm"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder), "KUBECONFIG": "/k", "CLUSTER_IMAGE": "gptj:1"}


def test_settings(tmp_path: Path) -> None:
    read = Settings.read(programs(tmp_path) | {"CLUSTER_PATIENCE": "2", "CLUSTER_KEEP": "yes"})
    assert (read.kubeconfig, read.image) == ("/k", Image("gptj", "1"))
    assert (read.namespace, read.patience, read.keep) == ("gptj-cluster-test", 2.0, True)
    assert not Settings.read(programs(tmp_path)).keep


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("KUBECONFIG", "", "KUBECONFIG is not set"),
        ("CLUSTER_IMAGE", "", "CLUSTER_IMAGE is not set"),
        ("HELM", "no-such-helm", "the program no-such-helm is not there"),
        ("CLUSTER_PATIENCE", "much", "CLUSTER_PATIENCE is 'much'"),
        ("CLUSTER_PATIENCE", "-1", "CLUSTER_PATIENCE is '-1'"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, variable: str, value: str, told: str) -> None:
    with pytest.raises(MissingError) as caught:
        Settings.read(programs(tmp_path) | {variable: value})
    text = str(caught.value)
    assert told in text
    assert all(name in text for name, _, _ in VARIABLES)
    assert "serving.kserve.io/v1beta1" in text


@pytest.mark.process
def test_without_a_cluster_the_suite_fails() -> None:
    """``make test-cluster`` must not look green where it ran nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/cluster", "--cluster"],
        cwd=ROOT,
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "make test-cluster cannot run: KUBECONFIG is not set" in done.stderr


def test_the_workflow_sets_what_the_suite_reads() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "cluster.yml").read_text())
    given = {name for name in workflow["env"] if name.startswith("CLUSTER_")}
    assert given <= {name for name, _, _ in VARIABLES}
    image = Image.parse(workflow["env"]["CLUSTER_IMAGE"])
    assert image.repository.startswith("dev.local/")  # else Knative would ask a registry for it
    steps = [step.get("run", "") for step in workflow["jobs"]["cluster"]["steps"]]
    assert "make test-cluster" in steps


def test_the_make_target_runs_the_suite() -> None:
    assert "pytest tests/cluster --cluster" in (ROOT / "Makefile").read_text()


def made() -> list[Object]:
    """Every object that the suite makes."""
    one = made_up_settings()
    return [
        objects.namespace(one),
        objects.scripts(),
        *objects.hub_objects(one),
        objects.client_pod(one),
        objects.volume_pod(one, "gptj-models"),
    ]


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_are_valid(version: str) -> None:
    for one in made():
        assert kubernetes_validate.validate(one, version, strict=True) == version
    broken = objects.client_pod(made_up_settings())
    broken["spec"]["containers"][0]["comand"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_pods_keep_to_the_restricted_standard() -> None:
    specs = [one["spec"] for one in made() if one["kind"] == "Pod"]
    specs += [one["spec"]["template"]["spec"] for one in made() if one["kind"] == "Deployment"]
    assert len(specs) == 3
    for spec in specs:
        [container] = spec["containers"]
        security = container["securityContext"]
        assert security["runAsNonRoot"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["allowPrivilegeEscalation"] is False
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"configMap", "emptyDir", "persistentVolumeClaim"} >= {
            kind for volume in spec["volumes"] for kind in volume if kind != "name"
        }


def test_scripts_stand_alone() -> None:
    """In the pod there is no ``tests``."""
    files = objects.scripts()["data"]
    assert set(files) == {"ask.py", "damage.py", "hub.py", "load.py"}
    assert not [name for name, text in files.items() if "from tests" in text]
    assert len(yaml.safe_dump(files)) < 2**20  # a ConfigMap's limit


def test_commands_name_scripts_that_are_there() -> None:
    files = objects.scripts()["data"]
    [hub] = objects.hub_objects(made_up_settings())[0]["spec"]["template"]["spec"]["containers"]
    assert hub["command"][1].removeprefix("/scripts/") in files


def test_the_hub_is_where_the_values_say() -> None:
    [variable] = values.base(made_up_settings())["extraEnv"]
    assert variable["value"] == "http://suite-hub.suite.svc:8000"
    [service] = [one for one in objects.hub_objects(made_up_settings()) if one["kind"] == "Service"]
    assert [port["port"] for port in service["spec"]["ports"]] == [8000, 8001]


@pytest.mark.parametrize(("mode", "change"), values.combinations())
def test_values_files_render(mode: str, change: str) -> None:
    given = values.values_for(made_up_settings(), mode, change)
    release = render(given, name="gptj", namespace="suite")
    assert release.container["image"].startswith("registry:5000/gptj:")
    for one in release.objects:
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, KUBERNETES[1], strict=True)
    service = release.one("InferenceService")
    assert round_trip(service, "V1beta1InferenceService") == service
    for pod in release.pods():
        memory = pod["containers"][0]["resources"]["requests"]["memory"]
        assert memory.endswith("Mi")  # it fits a laptop


@pytest.mark.parametrize("mode", values.MODES)
def test_the_other_release_has_the_first_one_s_claim(mode: str) -> None:
    own = render(values.values_for(made_up_settings(), mode, "as it is"), name="gptj")
    given = values.values_for(made_up_settings(), mode, "other user", release=values.OTHER)
    other = render(given, name="other")
    assert own.has("PersistentVolumeClaim", "gptj-models")
    assert not other.has("PersistentVolumeClaim")
    assert not other.has("Job")
    assert {"name": "STORAGE_URI", "value": "pvc://gptj-models"} in other.container["env"]


def test_what_each_change_is_for() -> None:
    """A change that changed nothing would make its test one of nothing."""
    files = {
        name: values.values_for(made_up_settings(), "standard", name) for name in values.CHANGES
    }
    assert [name for name, one in files.items() if one == files["as it is"]] == ["as it is"]


def test_node_patches() -> None:
    [add] = objects.node_patches("a/b~c", 1)
    assert add == {"op": "add", "path": "/status/capacity/a~1b~0c", "value": "1"}
    [remove] = objects.node_patches("a/b", 0)
    assert remove == {"op": "remove", "path": "/status/capacity/a~1b"}


def test_wait() -> None:
    answers = iter([None, False, "yes"])
    assert wait(lambda: next(answers), 5, pause=0) == "yes"
    with pytest.raises(TimeoutError, match="not within 0 s; the state"):
        wait(lambda: None, 0.05, lambda: "the state", pause=0.01)


def recorder(folder: Path, prints: str = "", code: int = 0) -> str:
    """A program that writes down its arguments and its input."""
    program = folder / "program"
    program.write_text(
        f'#!/bin/sh\necho "$KUBECONFIG" "$@" > {folder}/arguments\ncat > {folder}/input\n'
        f"cat <<'X'\n{prints}\nX\necho problem >&2\nexit {code}\n"
    )
    program.chmod(0o755)
    return str(program)


def test_kubectl_and_helm_get_what_a_user_would_type(tmp_path: Path) -> None:
    kubectl = Kubectl(made_up_settings(kubectl=recorder(tmp_path, '{"items": [{"kind": "Pod"}]}')))
    assert kubectl.all("pods", "a=b") == [{"kind": "Pod"}]
    line = "/nowhere --namespace suite get pods --selector a=b --output json\n"
    assert (tmp_path / "arguments").read_text() == line
    kubectl.apply({"kind": "Pod"}, {"kind": "Service"})
    given = list(yaml.safe_load_all((tmp_path / "input").read_text()))
    assert given == [{"kind": "Pod"}, {"kind": "Service"}]
    helm = Helm(made_up_settings(helm=recorder(tmp_path, "gptj\nother")))
    assert helm.releases() == ["gptj", "other"]
    helm.install("gptj", {"gpu": {"count": 0}})
    assert yaml.safe_load((tmp_path / "input").read_text()) == {"gpu": {"count": 0}}


def test_a_failed_command_says_all(tmp_path: Path) -> None:
    kubectl = Kubectl(made_up_settings(kubectl=recorder(tmp_path, "printed", 3)))
    with pytest.raises(CommandError, match=r"(?s)get pods: 3\nprinted\nproblem"):
        kubectl("get", "pods")


def status(**fields: Any) -> Object:
    return {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": fields}


def conditions(**kinds: str) -> list[Object]:
    return [{"type": kind, "status": value} for kind, value in kinds.items()]


def test_holds() -> None:
    ready = conditions(PredictorReady="False", Ready="True")
    assert reading.holds(status(conditions=ready), "Ready")
    assert not reading.holds(status(conditions=ready), "PredictorReady")
    assert not reading.holds(status(), "Ready")
    assert not reading.holds(None, "Ready")


@pytest.mark.parametrize("mode", values.MODES)
def test_carries(mode: str) -> None:
    """An old Deployment does not carry a new InferenceService, whatever has changed of it."""

    def service(change: str) -> Object:
        given = values.values_for(made_up_settings(), mode, change)
        return render(given, name="gptj").one("InferenceService")

    def workload(change: str, **spec: Any) -> Object:
        [container] = service(change)["spec"]["predictor"]["containers"]
        added = {**container, "env": [*container["env"], {"name": "ADDED", "value": "1"}]}
        containers = [{"name": "other"}, added]
        return {"spec": {"template": {"spec": {"containers": containers}}, **spec}}

    assert reading.carries(service("as it is"), workload("as it is"))
    for change in ("precision", "memory limit", "new revision", "no image", "damaged"):
        assert not reading.carries(service(change), workload("as it is")), change
    assert not reading.carries(service("as it is"), None)
    assert not reading.carries(None, workload("as it is"))
    if mode == "standard":
        assert not reading.carries(service("two replicas"), workload("two replicas", replicas=1))
        assert reading.carries(service("two replicas"), workload("two replicas", replicas=2))


def test_rolled_out() -> None:
    whole = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "observedGeneration": 2}
    assert reading.rolled_out(status(**whole))
    for changed in ({"replicas": 3}, {"availableReplicas": 1}, {"observedGeneration": 1}):
        assert not reading.rolled_out(status(**whole | changed)), changed
    assert not reading.rolled_out(None)


def test_newest_revision_serves() -> None:
    ready = {"observedGeneration": 2, "conditions": conditions(Ready="True")}
    revisions = {"latestReadyRevisionName": "a-2", "latestCreatedRevisionName": "a-2"}
    assert reading.newest_revision_serves(status(**ready, **revisions))
    assert not reading.newest_revision_serves(
        status(**ready, **revisions | {"latestReadyRevisionName": "a-1"})
    )
    late = ready | {"observedGeneration": 1}
    assert not reading.newest_revision_serves(status(**late, **revisions))
    assert not reading.newest_revision_serves(None)


def pod(**container: Any) -> Object:
    states = [{"name": "queue-proxy", "restartCount": 9}, {"name": "kserve-container", **container}]
    return {"metadata": {"name": "p"}, "status": {"containerStatuses": states}}


def test_pods() -> None:
    ended = {"reason": "Error", "exitCode": 1, "message": "weights are damaged\n"}
    killed = {"reason": "OOMKilled", "exitCode": 137}
    both = pod(restartCount=2, lastState={"terminated": killed}, state={"terminated": ended})
    assert reading.restarts([both, {"metadata": {}}]) == 2
    assert [one["reason"] for one in reading.terminations([both])] == ["OOMKilled", "Error"]
    assert reading.termination_messages([both, pod()]) == ["weights are damaged"]
    waits = pod(state={"waiting": {"reason": "ErrImagePull"}})
    assert [reading.waiting_reason(one) for one in (waits, both)] == ["ErrImagePull", ""]
    no_node = [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]
    assert reading.unschedulable({"status": {"conditions": no_node}}) == "0/1 nodes"
    assert reading.unschedulable(both) == ""


def test_jobs_and_services() -> None:
    assert reading.ended(status(conditions=conditions(Complete="True"))) == "Complete"
    assert reading.ended(status(conditions=conditions(Failed="True"))) == "Failed"
    assert reading.ended(status()) == ""
    service = {"status": {"modelStatus": {"lastFailureInfo": {"message": "x"}}}}
    assert reading.failure_info(service) == {"message": "x"}
    assert reading.failure_info({}) == {}


def test_metric() -> None:
    text = '# TYPE a gauge\na{b="c",d="e"} 2\na{b="f",d="e"} 3\n'
    assert reading.metric(text, "a", b="c") == [({"b": "c", "d": "e"}, 2.0)]
    assert reading.metric(text, "z") == []
