"""The values files of the cluster suite, by what they are for."""

from __future__ import annotations

from typing import Any

from tests.support.charts import Values, merged
from tests.support.cluster.objects import DAMAGED_ID, GATED_ID, LATE_ID, hub_endpoint
from tests.support.cluster.settings import Settings

RELEASE = "gptj"
#: A second release, on the first one's claim.
OTHER = "other"
#: The resource that stands in for a GPU: no device plugin knows it, and no device is behind it.
GPU = "gptj-predictor.test/gpu"
MODEL_NAME = "eleutherai-gpt-j-6b"
#: What a pull's log has only if it fetched weights.
FETCHED = "downloading 5 files"

_SMALL = {
    "requests": {"cpu": "100m", "memory": "256Mi"},
    "limits": {"cpu": "2", "memory": "2Gi"},
}
_TWO: Values = {
    "scaling": {"minReplicas": 2, "maxReplicas": 2},
    "deploymentStrategy": {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    },
}
_RESTART: Values = {"extraEnv": [{"name": "SUITE_REVISION", "value": "2"}]}

MODES: dict[str, Values] = {
    "standard": {
        "deploymentMode": "Standard",
        "scaling": {"minReplicas": 1},
        "terminationGracePeriodSeconds": 60,
    },
    "knative": {
        "deploymentMode": "Knative",
        "scaling": {"minReplicas": 0, "scaleToZeroPodRetentionPeriod": "20s"},
        "timeoutSeconds": 60,
    },
}

#: What each test changes.
CHANGES: dict[str, Values] = {
    "as it is": {},
    "benchmark": {
        "benchmark": {
            "batchSize": 1,
            "resources": _SMALL,
            "extraArgs": ["--min-tokens", "128", "--max-tokens", "256", "--rounds", "1"],
        }
    },
    "precision": {"model": {"precision": "fp16"}},
    "other user": {"securityContext": {"runAsUser": 70001}},
    "damaged": {"model": {"id": DAMAGED_ID}},
    "mended": {"model": {"id": DAMAGED_ID}, "download": {"verify": "again"}},
    "memory limit": {
        "resources": {
            "requests": {"cpu": "100m", "memory": "1200Mi"},
            "limits": {"cpu": "2", "memory": "1200Mi"},
        }
    },
    "gpu": {"gpu": {"count": 1, "resource": GPU}},
    "crashing": {"extraArgs": ["--max_batch_size", "0"], "podDisruptionBudget": {"enabled": True}},
    "late": {"model": {"id": LATE_ID}},
    "gated": {"model": {"id": GATED_ID}, "download": {"backoffLimit": 0}},
    "no image": {"image": {"tag": "no-such-tag", "digest": "", "pullPolicy": "IfNotPresent"}},
    "pod monitor": {"podMonitor": {"enabled": True}},
    "keda": {
        "scaling": {
            "maxReplicas": 2,
            "keda": {"enabled": True, "serverAddress": "http://prometheus:9090"},
        }
    },
    # Two replicas, replaced one after the other with nothing missing in between.
    "two replicas": _TWO,
    # KServe takes back what kubectl rollout restart does to its Deployment.
    "two replicas, restarted": {**_TWO, **_RESTART},
    "new revision": _RESTART,
}

#: What only one of the modes has.
ONLY = {
    "keda": "standard",
    "two replicas": "standard",
    "two replicas, restarted": "standard",
}


def base(settings: Settings) -> Values:
    """What all releases have: a small CPU service that pulls the demo from the suite's hub."""
    image = settings.image
    return {
        "image": {
            "repository": image.repository,
            "tag": image.tag,
            "digest": image.digest,
            "pullPolicy": settings.pull_policy,
        },
        "gpu": {"count": 0},
        "model": {"precision": "bfloat16"},
        "resources": _SMALL,
        "download": {"resources": _SMALL},
        "cache": {"size": "1Gi", "storageClassName": settings.storage_class},
        "allow": {"sharedReadWriteOnce": True},
        "progressDeadline": "10m",
        "probes": {"startup": {"periodSeconds": 2}},
        "extraEnv": [{"name": "HF_ENDPOINT", "value": hub_endpoint(settings.namespace)}],
    }


def values_for(settings: Settings, mode: str, change: str, *, release: str = RELEASE) -> Values:
    """The values file of one release in one test.

    Args:
        settings: Where the suite runs.
        mode: One of :data:`MODES`.
        change: One of :data:`CHANGES`.
        release: :data:`OTHER` mounts the claim of :data:`RELEASE` and pulls nothing.
    """
    changed = CHANGES[change]
    result = merged(base(settings), MODES[mode], changed)
    if "extraEnv" in changed:  # Helm replaces lists
        result["extraEnv"] = [*base(settings)["extraEnv"], *changed["extraEnv"]]
    if release == OTHER:
        theirs: dict[str, Any] = {"existingClaim": f"{RELEASE}-models"}
        result = merged(result, {"cache": theirs, "download": {"enabled": False}})
    return result


def combinations() -> list[tuple[str, str]]:
    """Every mode with every change that it may have."""
    return [
        (mode, change) for mode in MODES for change in CHANGES if ONLY.get(change, mode) == mode
    ]
