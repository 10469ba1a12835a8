"""What the chart makes, whatever the values: valid objects, and the house's rules for them."""

from __future__ import annotations

import itertools
from typing import Any

import helm_python
import kubernetes_validate
import pytest

from gptj_predictor import __version__
from gptj_predictor.settings import MOUNTED_MODEL, ServerSettings, wire_name
from tests.support.charts import (
    CHART,
    INSTALLS,
    Release,
    Values,
    install_values,
    merged,
    nested,
    render,
    round_trip,
)

#: The oldest that Chart.yaml claims, and the newest that there is a schema for.
KUBERNETES = ("1.25", "1.37")

#: Not built in: no schema in kubernetes-validate.
CUSTOM = {"InferenceService", "PodMonitor"}

#: API versions that every supported Kubernetes serves and none has deprecated.
API_VERSIONS = {
    "v1",
    "batch/v1",
    "policy/v1",
    "networking.k8s.io/v1",
    "serving.kserve.io/v1beta1",
    "monitoring.coreos.com/v1",
}

MODES: dict[str, Values] = {
    "knative": {"deploymentMode": "Knative"},
    "standard": {"deploymentMode": "Standard", "scaling": {"minReplicas": 1}},
}
MOUNTS: dict[str, Values] = {
    "storageUri": {},
    "volume": {"cache": {"mountVia": "volume"}},
    "volume, written": {"cache": {"mountVia": "volume", "readOnly": False, "subPath": "a/b"}},
}
CACHES: dict[str, Values] = {
    "own": {},
    "own, given up": {"cache": {"keep": False, "storageClassName": "fast"}},
    "existing": {"cache": {"existingClaim": "theirs", "subPath": "gptj"}},
    "no download": {"cache": {"existingClaim": "theirs"}, "download": {"enabled": False}},
}
BENCHMARKS: dict[str, Values] = {
    "none": {},
    "beside": {
        "benchmark": {"batchSize": 8, "warmupRounds": 2, "ttl": 600},
        "allow": {"sharedReadWriteOnce": True},
    },
    "only": {"benchmark": {"batchSize": 2, "only": True}},
}
SCALINGS: dict[str, Values] = {
    "default": {},
    "four": {
        "scaling": {"maxReplicas": 4, "scaleTarget": 9},
        "cache": {"accessModes": ["ReadWriteMany"]},
    },
}

MANY: Values = {"cache": {"accessModes": ["ReadWriteMany"]}}

#: Everything that is off by default, and every list and map with something in it.
EVERYTHING: Values = {
    "gpu": {"count": 2, "labelValues": ["A40", "A100"]},
    "region": {"values": ["ORD1"]},
    "model": {
        "name": "gptj",
        "defaults": {
            "min_length": 5,
            "max_length": 100,
            "temperature": 0.5,
            "top_k": 40,
            "top_p": 0.95,
            "repetition_penalty": 1.1,
        },
    },
    "download": {"hfToken": {"existingSecret": "hub"}, "ttl": 60},
    "benchmark": {"batchSize": 2, "extraArgs": ["--rounds", "2"]},
    "cache": {"accessModes": ["ReadWriteMany"], "annotations": {"argocd/prune": "no"}},
    "shm": "1Gi",
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "labels": {"team": "nlp", "app.kubernetes.io/name": "other"},
    "annotations": {"example.com/a": "b", "serving.kserve.io/stop": "true"},
    "nodeSelector": {"disk": "ssd"},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
                    {
                        "matchFields": [
                            {"key": "metadata.name", "operator": "In", "values": ["node"]}
                        ]
                    },
                ]
            }
        }
    },
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "serviceAccount": {"annotations": {"cloud/role": "reader"}},
    "extraEnv": [
        {"name": "HF_ENDPOINT", "value": "http://hub"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ],
    "extraArgs": ["--max_batch_size", "64"],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
    "extraObjects": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "{{ .Release.Name }}-extra"},
            "data": {"a": "b"},
        }
    ],
    "podMonitor": {"enabled": True, "labels": {"team": "ops"}},
    "dashboard": {"enabled": True},
    "networkPolicy": {"enabled": True, "from": [{"podSelector": {}}]},
    "podDisruptionBudget": {"enabled": True},
}

MATRIX = {
    ", ".join(names): merged(*values)
    for names, values in (
        (tuple(name for name, _ in row), tuple(value for _, value in row))
        for row in itertools.product(
            MODES.items(), MOUNTS.items(), CACHES.items(), BENCHMARKS.items(), SCALINGS.items()
        )
    )
}
MATRIX |= {f"install {name}": install_values(name) for name in INSTALLS}
MATRIX |= {f"everything, {name}": merged(EVERYTHING, mode) for name, mode in MODES.items()}


@pytest.fixture(scope="module")
def releases() -> dict[str, Release]:
    return {name: render(values) for name, values in MATRIX.items()}


@pytest.mark.parametrize("install", [*INSTALLS, None])
def test_lint(install: str | None) -> None:
    report = helm_python.lint(
        CHART, install_values(install) if install else None, strict=True, namespace="ml"
    )
    assert report["total_charts_linted"] == 1
    assert report["errors"] == []
    # 1 is information: that there is no icon.
    assert [one for one in report["messages"] if one["severity"] > 1] == []


def test_chart_and_package_have_one_version() -> None:
    with helm_python.Chart.load(CHART) as chart:
        assert chart.metadata["appVersion"] == chart.version == __version__
    assert render().container["image"].endswith(f":{__version__}")


@pytest.mark.slow
@pytest.mark.parametrize("version", KUBERNETES)
def test_built_in_kinds_are_valid(releases: dict[str, Release], version: str) -> None:
    seen: dict[str, Any] = {}
    for release in releases.values():
        for one in release.objects:
            if one["kind"] not in CUSTOM:
                seen.setdefault(repr(one), one)
    kinds = {one["kind"] for one in seen.values()}
    assert kinds == {
        "ConfigMap",
        "Job",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Pod",
        "PodDisruptionBudget",
        "ServiceAccount",
    }
    for one in seen.values():
        assert kubernetes_validate.validate(one, version, strict=True) == version


@pytest.mark.slow
def test_no_field_of_the_inference_service_is_lost(releases: dict[str, Release]) -> None:
    for name, release in releases.items():
        if release.has("InferenceService"):
            service = release.one("InferenceService")
            assert round_trip(service, "V1beta1InferenceService") == service, name


def test_a_field_that_kserve_lacks_would_be_found() -> None:
    service = render().one("InferenceService")
    service["spec"]["predictor"]["replicas"] = 3
    assert round_trip(service, "V1beta1InferenceService") != service
    service = render().one("InferenceService")
    service["spec"]["predictor"]["containers"][0]["livenessProb"] = {}
    assert round_trip(service, "V1beta1InferenceService") != service


def test_api_versions(releases: dict[str, Release]) -> None:
    used = {one["apiVersion"] for release in releases.values() for one in release.objects}
    assert used == API_VERSIONS


def test_what_is_made(releases: dict[str, Release]) -> None:
    for name, release in releases.items():
        only, benchmark = ", only" in name, "none, " not in name
        if name.startswith(("install", "everything")):
            continue
        assert release.has("InferenceService") != only, name
        assert release.has("Pod", "-test") != only, name
        assert release.has("Job", "-benchmark-") == benchmark, name
        assert release.has("Job", "-pull-") == ("no download" not in name), name
        assert release.has("PersistentVolumeClaim") == (", own" in name), name
        assert not release.has("PodMonitor")
        assert not release.has("ConfigMap")
        assert not release.has("NetworkPolicy")
        assert not release.has("PodDisruptionBudget")


def test_names_are_unique_and_short(releases: dict[str, Release]) -> None:
    longest = render(EVERYTHING, name="a" * 53)
    for release in (*releases.values(), longest):
        names = [(one["kind"], one["metadata"]["name"]) for one in release.objects]
        assert len(names) == len(set(names))
        assert max(len(name) for _, name in names) <= 63


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
                assert set(volume) - {"name"} <= {"emptyDir", "persistentVolumeClaim", "configMap"}


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


def test_all_four_resources_are_set(releases: dict[str, Release]) -> None:
    for release in releases.values():
        for pod in release.pods():
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(pod["containers"][0]["resources"][kind])


def test_all_pods_share_the_predictors_placement(releases: dict[str, Release]) -> None:
    """Those without a GPU are let in where those with one are, and go where there are some."""
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
            with_gpu, asks = (
                "nvidia.com/gpu" in one["containers"][0]["resources"]["limits"]
                for one in (predictor, pod)
            )
            visits = {"key": "nvidia.com/gpu", "operator": "Exists"} in allowed
            assert visits or asks or not with_gpu
    anywhere = render().one("Job")["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    [wish] = anywhere["preferredDuringSchedulingIgnoredDuringExecution"]
    assert wish["preference"]["matchExpressions"][0]["key"] == "nvidia.com/gpu.product"
    on_cpus = render({"gpu": {"count": 0}}).one("Job")["spec"]["template"]["spec"]
    assert not {"affinity", "tolerations"} & set(on_cpus)


def test_gpu_and_region_are_in_every_term() -> None:
    """Terms are alternatives, so a label in one of them alone could be passed by."""
    affinity = render(EVERYTHING).predictor["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    gpu = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["A40", "A100"]}
    region = {"key": "topology.kubernetes.io/region", "operator": "In", "values": ["ORD1"]}
    assert [term["matchExpressions"] for term in terms] == [
        [{"key": "a", "operator": "Exists"}, gpu, region],
        [gpu, region],
    ]
    assert "matchFields" in terms[1]


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
    # A pull that held the only GPU would wait for a predictor that waits for it.
    assert "amd.com/gpu" not in pull["resources"]["limits"]


@pytest.mark.parametrize(
    ("model_id", "name"),
    [("EleutherAI/gpt-j-6B", ""), ("a.b/C_d", ""), ("x/y", "mine")],
)
def test_model_name(model_id: str, name: str) -> None:
    release = render({"model": {"id": model_id, "name": name}})
    args = release.container["args"]
    served = args[args.index("--model_name") + 1]
    assert served == (name or wire_name(model_id))
    for probe in ("startupProbe", "readinessProbe"):
        assert release.container[probe]["httpGet"]["path"] == f"/v1/models/{served}"
    assert f"/v1/models/{served}:predict" in release.notes


@pytest.mark.parametrize(
    ("precision", "cards", "stored"),
    [
        ("auto", [], "auto"),
        ("auto", ["A40"], "auto"),
        ("auto", ["Tesla-V100-SXM2-16GB"], "fp16"),
        ("auto", ["Tesla-T4", "Quadro_RTX_5000"], "fp16"),
        ("auto", ["Tesla-T4", "NVIDIA-A10"], "auto"),
        ("auto", ["NVIDIA-RTX-A4000", "RTX_A5000"], "auto"),
        ("native", ["Tesla-T4"], "native"),
    ],
)
def test_stored_precision(precision: str, cards: list[str], stored: str) -> None:
    release = render({"model": {"precision": precision}, "gpu": {"labelValues": cards}})
    [pull] = release.one("Job")["spec"]["template"]["spec"]["containers"]
    assert pull["args"][pull["args"].index("--precision") + 1] == stored
    assert release.container["args"][release.container["args"].index("--precision") + 1] == (
        precision
    )


class TestModes:
    def test_knative(self) -> None:
        release = render({"scaling": {"targetUtilization": 70}})
        annotations = release.one("InferenceService")["metadata"]["annotations"]
        assert annotations == {
            "serving.kserve.io/deploymentMode": "Knative",
            "serving.knative.dev/progress-deadline": "30m",
            "autoscaling.knative.dev/scale-to-zero-pod-retention-period": "10m",
            "autoscaling.knative.dev/target-utilization-percentage": "70",
        }
        # Fields of the pod that Knative refuses, or takes behind a flag that is off.
        assert not {
            "securityContext",
            "deploymentStrategy",
            "terminationGracePeriodSeconds",
            "affinity",
            "automountServiceAccountToken",
        } & set(release.predictor)
        assert release.predictor["containerConcurrency"] == (
            ServerSettings.model_fields["max_batch_size"].default
        )

    def test_standard(self) -> None:
        values = MODES["standard"]
        release = render(values)
        annotations = release.one("InferenceService")["metadata"]["annotations"]
        assert annotations == {
            "serving.kserve.io/deploymentMode": "Standard",
            "serving.kserve.io/autoscalerClass": "none",
        }
        assert release.predictor["deploymentStrategy"] == {"type": "Recreate"}
        assert release.predictor["terminationGracePeriodSeconds"] > 30  # the server's own
        assert release.predictor["securityContext"]["fsGroup"] == 65532
        more = render(values, SCALINGS["four"]).one("InferenceService")["metadata"]["annotations"]
        assert more == {"serving.kserve.io/deploymentMode": "Standard"}
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}
        other = {"deploymentStrategy": rolling, "terminationGracePeriodSeconds": 0}
        release = render(values, other, {"scaling": {"autoscalerClass": "external"}})
        assert release.predictor["deploymentStrategy"] == rolling
        assert release.predictor["terminationGracePeriodSeconds"] == 0
        annotations = release.one("InferenceService")["metadata"]["annotations"]
        assert annotations["serving.kserve.io/autoscalerClass"] == "external"

    def test_keda(self) -> None:
        metric = {
            "type": "External",
            "external": {
                "metric": {
                    "backend": "prometheus",
                    "serverAddress": "http://prometheus",
                    "query": "sum(rate(request_predict_seconds_count[1m]))",
                },
                "target": {"type": "Value", "value": "1"},
            },
        }
        scaling: Values = {
            "minReplicas": 0,
            "autoscalerClass": "keda",
            "autoScaling": {"metrics": [metric]},
        }
        release = render({"deploymentMode": "Standard", "scaling": scaling})
        service = release.one("InferenceService")
        assert release.predictor["minReplicas"] == 0
        assert release.predictor["autoScaling"] == scaling["autoScaling"]
        assert service["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
        assert round_trip(service, "V1beta1InferenceService") == service

    def test_metrics(self) -> None:
        release = render({"scaling": {"scaleMetric": "rps", "scaleTarget": 5}})
        assert (release.predictor["scaleMetric"], release.predictor["scaleTarget"]) == ("rps", 5)

    @pytest.mark.parametrize("mode", MODES)
    def test_probes(self, mode: str) -> None:
        container = render(MODES[mode]).container
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] == container["ports"][0]["containerPort"]
        assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"

    @pytest.mark.parametrize(
        ("values", "seconds"),
        [
            ({}, 1740),
            ({"progressDeadline": "1h30m"}, 5340),
            ({"probes": {"startup": {"periodSeconds": 7}}}, 1736),
            ({"probes": {"startup": {"failureThreshold": 360}}}, 1800),
            ({"progressDeadline": "2m"}, 60),
        ],
    )
    def test_startup_budget(self, values: Values, seconds: int) -> None:
        container = render(values).container
        probe = container["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == seconds
        args = container["args"]
        assert args[args.index("--wait_for_snapshot") + 1] == str(seconds)


class TestCache:
    def test_mounted_by_kserve(self) -> None:
        release = render({"cache": {"subPath": "models/j"}})
        assert release.container["env"] == [
            {"name": "STORAGE_URI", "value": "pvc://demo-models/models/j"}
        ]
        assert [volume["name"] for volume in release.predictor["volumes"]] == ["tmp"]
        assert render().container["env"][0]["value"] == "pvc://demo-models"
        written = render({"cache": {"readOnly": False}}).one("InferenceService")
        assert written["metadata"]["annotations"]["storage.kserve.io/readonly"] == "false"

    @pytest.mark.parametrize("read_only", [True, False])
    def test_mounted_by_the_chart(self, read_only: bool) -> None:
        release = render(
            {"cache": {"mountVia": "volume", "readOnly": read_only, "existingClaim": "theirs"}}
        )
        assert "env" not in release.container
        assert release.container["volumeMounts"][1] == {
            "name": "models",
            "mountPath": "/mnt/models",
            "readOnly": read_only,
        }
        assert release.predictor["volumes"][1]["persistentVolumeClaim"] == {
            "claimName": "theirs",
            "readOnly": read_only,
        }

    @pytest.mark.parametrize("existing", ["", "theirs"])
    @pytest.mark.parametrize("folder", ["", "a/b"])
    @pytest.mark.parametrize("via", ["storageUri", "volume"])
    def test_all_see_the_same_files(self, existing: str, folder: str, via: str) -> None:
        cache = {"existingClaim": existing, "subPath": folder, "mountVia": via}
        release = render({"cache": {**cache, "accessModes": ["ReadWriteMany"]}}, EVERYTHING)
        claim = existing or release.one("PersistentVolumeClaim")["metadata"]["name"]
        pods = [job["spec"]["template"]["spec"] for job in release.all("Job")]
        if via == "volume":
            pods.append(release.predictor)
        else:
            [uri] = [v for v in release.container["env"] if v["name"] == "STORAGE_URI"]
            assert uri["value"] == f"pvc://{claim}/{folder}".rstrip("/")
        for pod in pods:
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            [mount] = [
                one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "models"
            ]
            assert mount["mountPath"] == str(MOUNTED_MODEL)
            assert mount.get("subPath", "") == folder
            assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim

    def test_claim(self) -> None:
        cache = {"size": "5Gi", "storageClassName": "fast", "annotations": {"a": "b"}}
        claim = render({"cache": cache}).one("PersistentVolumeClaim")
        assert claim["spec"]["storageClassName"] == "fast"
        assert claim["spec"]["resources"]["requests"]["storage"] == "5Gi"
        assert claim["metadata"]["annotations"] == {"a": "b", "helm.sh/resource-policy": "keep"}

    def test_keep(self) -> None:
        policy = "helm.sh/resource-policy"
        kept = render().one("PersistentVolumeClaim")["metadata"]
        assert kept["annotations"] == {policy: "keep"}
        gone = render({"cache": {"keep": False}})
        assert "annotations" not in gone.one("PersistentVolumeClaim")["metadata"]
        for release in (render(EVERYTHING), gone):
            for one in release.objects:
                if one["kind"] != "PersistentVolumeClaim":
                    assert policy not in one["metadata"].get("annotations", {})


class TestJobs:
    def test_a_changed_job_is_another_job(self) -> None:
        base: Values = {"benchmark": {"batchSize": 2}, **MANY}
        names = [job["metadata"]["name"] for job in render(base).all("Job")]
        assert names == [job["metadata"]["name"] for job in render(base).all("Job")]
        for path, value in (
            ("image.tag", "2"),
            ("model.id", "a/b"),
            ("model.precision", "fp16"),
            ("nodeSelector", {"a": "b"}),
            ("labels", {"a": "b"}),
            ("extraEnv", [{"name": "A", "value": "b"}]),
            ("cache.subPath", "x"),
        ):
            changed = render(base, nested(path, value)).all("Job")
            assert not {job["metadata"]["name"] for job in changed} & set(names), path
        # What is no part of a Job's template leaves it alone.
        same = render(base, {"scaling": {"maxReplicas": 1}, "timeoutSeconds": 60}).all("Job")
        assert [job["metadata"]["name"] for job in same] == names

    def test_benchmarks_of_different_machines_are_kept_apart(self) -> None:
        base: Values = {"benchmark": {"batchSize": 2, "only": True}}

        def output(*values: Values) -> str:
            [container] = render(base, *values).one("Job", "benchmark")["spec"]["template"]["spec"][
                "containers"
            ]
            assert container["args"][-1] == "--resume"
            return str(container["args"][-2])

        assert output() == output({"timeoutSeconds": 60}, {"download": {"ttl": 5}})
        others = [
            output({"gpu": {"labelValues": ["A40"]}}),
            output({"gpu": {"labelValues": ["A100"]}}),
            output({"benchmark": {"resources": {"limits": {"cpu": "16"}}}}),
            output({"image": {"tag": "2"}}),
            output({"model": {"revision": "v2"}}),
        ]
        assert len({output(), *others}) == 6

    def test_time_to_live_and_tries(self) -> None:
        settings = {"ttl": 60, "backoffLimit": 3}
        release = render(
            {"download": settings, "benchmark": {**settings, "batchSize": 1, "only": True}}
        )
        for job in release.all("Job"):
            assert job["spec"]["ttlSecondsAfterFinished"] == 60
            assert job["spec"]["backoffLimit"] == 3
        assert "ttlSecondsAfterFinished" not in render().one("Job")["spec"]

    def test_no_hooks_but_the_test(self, releases: dict[str, Release]) -> None:
        for release in releases.values():
            for one in release.objects:
                hook = one["metadata"].get("annotations", {}).get("helm.sh/hook")
                assert hook == ("test" if one["kind"] == "Pod" else None)

    def test_token(self) -> None:
        release = render({"download": {"hfToken": {"existingSecret": "hub", "key": "k"}}})
        [pull] = release.one("Job")["spec"]["template"]["spec"]["containers"]
        assert pull["env"] == [
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "k"}}}
        ]
        assert "HF_TOKEN" not in str(release.predictor)


def test_names_that_yaml_would_take_for_numbers() -> None:
    """Or for booleans: they stay strings, in every object."""
    values: Values = {
        "fullnameOverride": "on",
        "model": {"name": "6"},
        "cache": {"subPath": "2024", "storageClassName": "1", "mountVia": "volume"},
        "priorityClassName": "1",
        "runtimeClassName": "0",
        "image": {"repository": "1", "tag": "1.0"},
        "serviceAccount": {"name": "1e3"},
    }
    extras = ("podMonitor", "dashboard", "networkPolicy", "podDisruptionBudget")
    values |= {name: {"enabled": True} for name in extras}
    release = render(values, {"benchmark": {"batchSize": 1}}, MANY, name="12")
    for one in release.objects:
        assert isinstance(one["metadata"]["name"], str)
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "12"
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, KUBERNETES[1], strict=True)
    service = release.one("InferenceService")
    assert round_trip(service, "V1beta1InferenceService") == service
    assert all(isinstance(arg, str) for arg in release.container["args"])


def test_optional_parts() -> None:
    """They select what the others make, and every pod gets what is for all."""
    release = render(EVERYTHING, MANY)
    selected = {
        "serving.kserve.io/inferenceservice": release.one("InferenceService")["metadata"]["name"]
    }
    assert release.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == selected
    assert release.one("PodMonitor")["spec"]["selector"]["matchLabels"] == selected
    assert release.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"] == "user-port"
    predictor = release.one("NetworkPolicy", "predictor")["spec"]
    assert predictor["podSelector"]["matchLabels"] == selected
    ports = {port["port"] for port in predictor["ingress"][0]["ports"]}
    # The container's, and queue-proxy's: https://knative.dev/docs/serving/
    assert ports == {8080, 8012, 8013, 8112, 8022, 9090, 9091}
    assert predictor["ingress"][0]["from"] == [{"podSelector": {}}]
    jobs = release.one("NetworkPolicy", "jobs")["spec"]
    [components] = jobs["podSelector"]["matchExpressions"]
    templates = [job["spec"]["template"]["metadata"] for job in release.all("Job")]
    for metadata in (*templates, release.one("Pod")["metadata"]):
        assert jobs["podSelector"]["matchLabels"].items() <= metadata["labels"].items()
        assert metadata["labels"]["app.kubernetes.io/component"] in components["values"]
    account = release.one("ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for pod in release.pods():
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["enableServiceLinks"] is False
    assert release.predictor["runtimeClassName"] == "nvidia"
    [benchmark] = [job for job in release.all("Job") if "benchmark" in job["metadata"]["name"]]
    assert benchmark["spec"]["template"]["spec"]["runtimeClassName"] == "nvidia"
    for one in release.objects:
        if one["metadata"]["name"] != "demo-extra":
            assert one["metadata"]["labels"]["app.kubernetes.io/name"] == "gptj-isvc"
            assert one["metadata"]["labels"]["team"] == (
                "ops" if one["kind"] == "PodMonitor" else "nlp"
            )
    assert release.one("InferenceService")["metadata"]["annotations"]["example.com/a"] == "b"
    standard = render(EVERYTHING, MANY, MODES["standard"])
    assert (
        standard.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"]
        == (standard.container["ports"][0]["name"])
    )


class TestNotes:
    @pytest.mark.parametrize(
        ("values", "flags"),
        [
            ({}, []),
            ({"gpu": {"labelValues": ["A40"]}}, ["podspec-affinity"]),
            ({"region": {"values": ["x"]}}, ["podspec-affinity"]),
            ({"nodeSelector": {"a": "b"}}, ["podspec-nodeselector"]),
            ({"tolerations": [{"operator": "Exists"}]}, ["podspec-tolerations"]),
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
    def test_knative_flags(self, values: Values, flags: list[str]) -> None:
        notes = render(values).notes
        named = [word for word in notes.replace('"', " ").split() if word.startswith("kubernetes.")]
        assert named == [f"kubernetes.{flag}" for flag in flags]
        assert ("config-features" in notes) == bool(flags)
        assert "config-features" not in render(merged(values, MODES["standard"])).notes

    def test_timeouts(self) -> None:
        patch = '"revision-response-start-timeout-seconds":"500"'
        assert patch in render({"timeoutSeconds": 500}).notes
        assert patch not in render({"timeoutSeconds": 500}, MODES["standard"]).notes
        assert "revision-response-start" not in render().notes

    def test_commands_name_what_is_made(self, releases: dict[str, Release]) -> None:
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
                assert recipe == (mode["serving.kserve.io/deploymentMode"] == "Knative")
