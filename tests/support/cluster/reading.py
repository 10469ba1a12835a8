"""What the objects of a cluster say."""

from __future__ import annotations

from typing import Any

from tests.support.charts import Object


def condition(item: Object | None, kind: str) -> Object:
    """A condition of an object's status; an empty one while there is none."""
    conditions = ((item or {}).get("status") or {}).get("conditions") or []
    for one in conditions:
        if one["type"] == kind:
            return dict(one)
    return {}


def holds(item: Object | None, kind: str) -> bool:
    """Whether a condition is True.

    Of an InferenceService it may still be what was true before the last change; its
    ``observedGeneration`` is its Deployment's or Knative service's. So also ask :func:`carries`.
    """
    return condition(item, kind).get("status") == "True"


def carries(service: Object | None, workload: Object | None) -> bool:
    """Whether KServe has handed an InferenceService's container on, as it is now.

    Args:
        service: The InferenceService.
        workload: The Deployment or the Knative service that KServe makes of it.
    """
    if service is None or workload is None:
        return False
    predictor = service["spec"]["predictor"]
    wanted = predictor["containers"][0]
    containers = workload["spec"]["template"]["spec"]["containers"]
    [found] = [one for one in containers if one["name"] == wanted["name"]]
    same = all(found.get(key) == wanted.get(key) for key in ("image", "args", "resources"))
    variables = found.get("env") or []
    replicas = workload["spec"].get("replicas")  # a Knative service has none
    enough = replicas is None or replicas >= predictor.get("minReplicas", 1)
    return same and enough and all(one in variables for one in wanted.get("env") or [])


def rolled_out(deployment: Object | None) -> bool:
    """Whether all replicas of a Deployment are new and available, and no old one is left."""
    if deployment is None:
        return False
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    counts = [status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return bool(seen and counts == [wanted] * 3)


def newest_revision_serves(service: Object | None) -> bool:
    """Whether a Knative service's newest revision is the one that answers."""
    if service is None or not holds(service, "Ready"):
        return False
    status = service["status"]
    seen = status.get("observedGeneration", 0) >= service["metadata"]["generation"]
    return bool(seen and status["latestReadyRevisionName"] == status["latestCreatedRevisionName"])


def main_container(pod: Object) -> Object:
    """The state of a pod's own container; an empty one before it has any. Knative adds another."""
    states = (pod.get("status") or {}).get("containerStatuses") or []
    own = [one for one in states if one["name"] != "queue-proxy"]
    return dict(own[0]) if own else {}


def restarts(pods: list[Object]) -> int:
    """How often containers of the pods were started again."""
    return sum(main_container(pod).get("restartCount", 0) for pod in pods)


def terminations(pods: list[Object]) -> list[Object]:
    """How the pods' containers ended, each time that the cluster still knows of."""
    ends = []
    for pod in pods:
        container = main_container(pod)
        for state in (container.get("lastState") or {}, container.get("state") or {}):
            if "terminated" in state:
                ends.append(dict(state["terminated"]))
    return ends


def termination_messages(pods: list[Object]) -> list[str]:
    """What the containers said of their end; ``kubectl describe`` shows it as Message."""
    return [one["message"].strip() for one in terminations(pods) if one.get("message")]


def waiting_reason(pod: Object) -> str:
    """Why a pod's container does not run, such as ``ErrImagePull``, or ""."""
    waiting = (main_container(pod).get("state") or {}).get("waiting") or {}
    return str(waiting.get("reason", ""))


def unschedulable(pod: Object) -> str:
    """What the scheduler says of a pod that it finds no node for, or ""."""
    told = condition(pod, "PodScheduled")
    return str(told.get("message", "")) if told.get("status") == "False" else ""


def ended(job: Object | None) -> str:
    """``Complete``, ``Failed``, or "" while a Job runs."""
    for kind in ("Complete", "Failed"):
        if condition(job, kind).get("status") == "True":
            return kind
    return ""


def metric(text: str, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
    """The samples of a metric that have these labels, out of what ``/metrics`` answered."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    samples: list[tuple[dict[str, str], float]] = []
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                samples.append((dict(sample.labels), sample.value))
    return samples


def failure_info(service: Object) -> dict[str, Any]:
    """KServe's ``modelStatus.lastFailureInfo``, or an empty one."""
    status = (service.get("status") or {}).get("modelStatus") or {}
    return dict(status.get("lastFailureInfo") or {})
