"""The objects that the cluster suite makes beside the chart's: its namespace, hub and pods."""

from __future__ import annotations

from pathlib import Path

from tests.support import hub
from tests.support.charts import Object
from tests.support.cluster import ask, damage, load
from tests.support.cluster.settings import Settings

#: On the namespace, so that the suite deletes no other's.
OURS = {"gptj-predictor/cluster-suite": "yes"}

#: What the hub has: the model of the chart's defaults, one to be damaged, one that no test
#: pulls before the hub was down, and a gated one.
MODEL_ID = "EleutherAI/gpt-j-6B"
DAMAGED_ID = "suite/damaged"
LATE_ID = "suite/late"
GATED_ID = "suite/gated"
GATED_TOKEN = "hf_of-the-cluster-suite"

SCRIPTS = "suite-scripts"
HUB = "suite-hub"
CLIENT = "suite-client"
VOLUME = "suite-volume"
HUB_PORTS = (8000, 8001)

_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
#: Keeps a pod until it is deleted; as process 1 Python would otherwise ignore SIGTERM.
_STAY = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit()); signal.pause()"


def hub_endpoint(namespace: str) -> str:
    """The hub's address in the cluster, for HF_ENDPOINT."""
    return f"http://{HUB}.{namespace}.svc:{HUB_PORTS[0]}"


def namespace(settings: Settings) -> Object:
    """The suite's namespace; it enforces the restricted Pod Security Standard."""
    labels = {**OURS, "pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": settings.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def scripts() -> Object:
    """The programs for the suite's pods."""
    files = {Path(str(one.__file__)) for one in (hub, load, ask, damage)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": SCRIPTS},
        "data": {file.name: file.read_text() for file in sorted(files)},
    }


def _pod_spec(settings: Settings, name: str, command: list[str]) -> Object:
    container: Object = {
        "name": name,
        "image": str(settings.image),
        "imagePullPolicy": settings.pull_policy,
        "command": command,
        "resources": {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        },
        "securityContext": _SECURITY,
        "volumeMounts": [
            {"name": "scripts", "mountPath": "/scripts", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": [
            {"name": "scripts", "configMap": {"name": SCRIPTS}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def hub_objects(settings: Settings, replicas: int = 1) -> list[Object]:
    """The hub: a Deployment, which can be scaled to 0 and back, and its Service."""
    labels = {"app": HUB}
    command = ["python", "/scripts/hub.py", "--name", f"{HUB}.{settings.namespace}.svc"]
    command += ["--ports", *map(str, HUB_PORTS)]
    command += [MODEL_ID, DAMAGED_ID, LATE_ID, f"{GATED_ID}={GATED_TOKEN}"]
    spec = _pod_spec(settings, "hub", command)
    [container] = spec["containers"]
    container["readinessProbe"] = {"tcpSocket": {"port": HUB_PORTS[0]}, "periodSeconds": 1}
    container["ports"] = [{"containerPort": port} for port in HUB_PORTS]
    ports = [{"name": f"port-{port}", "port": port, "targetPort": port} for port in HUB_PORTS]
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": HUB, "labels": labels},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": HUB, "labels": labels},
            "spec": {"selector": labels, "ports": ports},
        },
    ]


def client_pod(settings: Settings) -> Object:
    """A pod to run scripts in, for requests from inside the cluster."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": CLIENT},
        "spec": _pod_spec(settings, "client", ["python", "-c", _STAY]),
    }


def volume_pod(settings: Settings, claim: str) -> Object:
    """A pod with a release's volume at /mnt/models, to look into it and to damage it."""
    spec = _pod_spec(settings, "volume", ["python", "-c", _STAY])
    spec["securityContext"] = {"fsGroup": 65532, "fsGroupChangePolicy": "OnRootMismatch"}
    spec["containers"][0]["volumeMounts"].append({"name": "models", "mountPath": "/mnt/models"})
    spec["volumes"].append({"name": "models", "persistentVolumeClaim": {"claimName": claim}})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": VOLUME}, "spec": spec}


def node_patches(resource: str, count: int) -> list[Object]:
    """A JSON patch of a node's status that gives it a resource; 0 takes it away."""
    path = "/status/capacity/" + resource.replace("~", "~0").replace("/", "~1")
    if count:
        return [{"op": "add", "path": path, "value": str(count)}]
    return [{"op": "remove", "path": path}]
