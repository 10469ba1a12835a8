"""One run of the cluster suite: the namespace, the hub, the client, and releases of the chart."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.charts import Object, Values
from tests.support.cluster import objects, reading
from tests.support.cluster.programs import CommandError, Helm, Kubectl, load_json, wait
from tests.support.cluster.settings import MissingError, Settings
from tests.support.cluster.values import MODEL_NAME, RELEASE, values_for

KSERVE = "serving.kserve.io/v1beta1"
KNATIVE = "serving.knative.dev/v1"

#: Seconds that a release may take to READY, pull included, on a cluster with patience 1.
READY = 240.0


class Cluster:
    """The suite's part of a cluster; made by ``with`` and deleted at its end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.kubectl, self.helm = Kubectl(settings), Helm(settings)
        self.groups = self.kubectl.groups()
        if KSERVE not in self.groups:
            raise MissingError(f"make test-cluster cannot run: the cluster has no {KSERVE}")

    @property
    def knative(self) -> bool:
        """Whether Knative Serving is there."""
        return KNATIVE in self.groups

    def __enter__(self) -> Self:
        namespace = self.kubectl.one("namespace", self.settings.namespace)
        if namespace is not None:
            labels = namespace["metadata"].get("labels") or {}
            if not objects.OURS.items() <= labels.items():
                raise MissingError(f"the namespace {self.settings.namespace} is not the suite's")
            self._delete()
        self.kubectl.apply(objects.namespace(self.settings))
        self.kubectl.apply(
            objects.scripts(),
            *objects.hub_objects(self.settings),
            objects.client_pod(self.settings),
        )
        self.wait_for_pods(objects.CLIENT)
        self.kubectl("rollout", "status", f"deployment/{objects.HUB}", self._timeout())
        return self

    def __exit__(self, *error: object) -> None:
        if not self.settings.keep:
            self._delete()

    def _delete(self) -> None:
        # Releases first: once the namespace ends, KServe cannot clean up after its services.
        for release in self.helm.releases():
            self.helm("uninstall", release)
        self.kubectl("delete", "namespace", self.settings.namespace, self._timeout())

    def _timeout(self) -> str:
        return f"--timeout={READY * self.settings.patience:.0f}s"

    def wait(self, what: str, condition: Any, seconds: float = READY, pause: float = 1.0) -> Any:
        """Wait, with this cluster's patience; the message has what was waited for."""
        return wait(condition, seconds * self.settings.patience, lambda: what, pause)

    def wait_for_pods(self, *names: str) -> None:
        """Wait until pods are ready."""
        for name in names:
            self.kubectl("wait", "--for=condition=Ready", f"pod/{name}", self._timeout())

    def set_hub(self, *, up: bool) -> None:
        """Take the hub away, or bring it back."""
        self.kubectl("scale", f"deployment/{objects.HUB}", f"--replicas={int(up)}")
        self.wait(
            "the hub's pods", lambda: len(self.pods(f"app={objects.HUB}")) == int(up), pause=0.5
        )
        self.kubectl("rollout", "status", f"deployment/{objects.HUB}", self._timeout())

    def pods(self, selector: str) -> list[Object]:
        """The pods with these labels."""
        return self.kubectl.all("pods", selector)

    def ask(self, url: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Status and body of one request from the client's pod."""
        words = ["python", "/scripts/ask.py", url]
        if body is not None:
            words.append(json.dumps(body))
        done = load_json(self.kubectl("exec", objects.CLIENT, "--", *words))
        return int(done["status"]), str(done["body"])

    @contextlib.contextmanager
    def volume(self, claim: str) -> Iterator[None]:
        """A pod that mounts a claim, for ``run_on_volume``."""
        self.kubectl.apply(objects.volume_pod(self.settings, claim))
        try:
            self.wait_for_pods(objects.VOLUME)
            yield
        finally:
            self.kubectl("delete", "pod", objects.VOLUME, "--ignore-not-found")

    def run_on_volume(self, *command: str) -> str:
        """What a command in that pod prints."""
        return self.kubectl("exec", objects.VOLUME, "--", *command)

    @contextlib.contextmanager
    def extended_resource(self, node: str, name: str) -> Iterator[None]:
        """A node that has one of a resource, and the taint that keeps other pods from it."""
        taint = f"{name}=yes:NoSchedule"
        with contextlib.ExitStack() as undo:
            self._patch_node(node, objects.node_patches(name, 1))
            undo.callback(self._patch_node, node, objects.node_patches(name, 0))
            self.kubectl("taint", "node", node, taint, "--overwrite")
            undo.callback(self.kubectl, "taint", "node", node, f"{taint}-")
            yield

    def _patch_node(self, node: str, patches: list[Object]) -> None:
        words = ("patch", "node", node, "--subresource", "status", "--type", "json")
        self.kubectl(*words, "--patch", json.dumps(patches))

    def load(self, url: str, **flags: object) -> RunningLoad:
        """Begin a load from the client's pod."""
        return RunningLoad(self, url, flags)

    def release(self, mode: str, name: str = RELEASE, model: str = MODEL_NAME) -> ClusterRelease:
        """A release of the chart, installed or not."""
        return ClusterRelease(self, mode, name, model)

    def report(self, test: str) -> Path:
        """Write down what the cluster says now; return the file."""
        words = (
            ("get", "isvc,pods,jobs,pvc,svc,deploy", "--output", "wide"),
            ("get", "ksvc,revision"),
            ("describe", "isvc,pods,jobs"),
            ("get", "events", "--sort-by", ".lastTimestamp"),
            ("logs", "--selector", "app.kubernetes.io/name=gptj-isvc", "--all-containers"),
        )
        texts = []
        for one in words:
            try:
                texts.append(f"$ kubectl {' '.join(one)}\n{self.kubectl(*one)}")
            except CommandError as error:
                texts.append(str(error))
        self.settings.reports.mkdir(parents=True, exist_ok=True)
        path = self.settings.reports / f"{test}.txt"
        path.write_text("\n\n".join(texts))
        return path


class RunningLoad:
    """Callers in the client's pod; see ``load.py``."""

    def __init__(self, cluster: Cluster, url: str, flags: dict[str, object]) -> None:
        self._cluster = cluster
        self._stop = f"/tmp/stop-{uuid.uuid4().hex}"
        words = ["python", "/scripts/load.py", "--url", url, "--until", self._stop]
        for name, value in flags.items():
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        self._process = subprocess.Popen(
            cluster.kubectl.execute(objects.CLIENT, *words),
            env={**os.environ, "KUBECONFIG": cluster.settings.kubeconfig},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._cluster.kubectl("exec", objects.CLIENT, "--", "touch", self._stop)
            self._process.communicate()

    def wait_for_first_answer(self) -> None:
        """Wait for it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "answered\n", line

    def end(self, *, stop: bool = True) -> dict[str, Any]:
        """Begin no more requests (or wait until all are sent), and return the summary."""
        if stop:
            self._cluster.kubectl("exec", objects.CLIENT, "--", "touch", self._stop)
        printed, problem = self._process.communicate()
        assert self._process.returncode == 0, problem
        return dict(load_json(printed))


@dataclass(frozen=True)
class ClusterRelease:
    """One release of the chart."""

    cluster: Cluster
    mode: str
    name: str
    model: str

    def values(self, change: str) -> Values:
        """The values file of a change, see ``values.py``."""
        return values_for(self.cluster.settings, self.mode, change, release=self.name)

    def install(self, change: str) -> str:
        """Install the release, or upgrade it; return what Helm prints."""
        return self.cluster.helm.install(self.name, self.values(change))

    def ready(self, change: str) -> None:
        """Install or upgrade, and wait until the new version answers."""
        self.install(change)
        self.wait_until_ready()

    def uninstall(self) -> None:
        """Uninstall it if it is there, and wait until its pods are gone."""
        if self.name in self.cluster.helm.releases():
            self.cluster.helm("uninstall", self.name)
        self.cluster.wait("no pod is left", lambda: not self.pods(), 120)

    @property
    def service(self) -> Object | None:
        """The InferenceService."""
        return self.cluster.kubectl.one("isvc", self.name)

    def is_ready(self) -> bool:
        """Whether the version of the last upgrade answers, and no older one."""
        service, knative = self.service, self.mode == "knative"
        kind = "ksvc" if knative else "deployment"
        workload = self.cluster.kubectl.one(kind, f"{self.name}-predictor")
        if not (reading.holds(service, "Ready") and reading.carries(service, workload)):
            return False
        whole = reading.newest_revision_serves if knative else reading.rolled_out
        return whole(workload)

    def wait_until_ready(self) -> None:
        """Wait for that."""
        self.cluster.wait(f"{self.name} is not READY", self.is_ready)

    def pods(self) -> list[Object]:
        """The predictor's pods."""
        return self.cluster.pods(f"serving.kserve.io/inferenceservice={self.name}")

    def job_pods(self, component: str) -> list[Object]:
        """The pods of a Job, ``pull`` or ``benchmark``."""
        labels = {"instance": self.name, "component": component}
        return self.cluster.pods(
            ",".join(f"app.kubernetes.io/{key}={value}" for key, value in labels.items())
        )

    def job(self, component: str) -> Object:
        """The Job of the release as it is now."""
        labels = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component={component}"
        [job] = self.cluster.kubectl.all("jobs", labels)
        return job

    def log(self, pod: Object, *words: str) -> str:
        """What a pod's own container has printed."""
        name = pod["metadata"]["name"]
        container = pod["spec"]["containers"][0]["name"]
        return self.cluster.kubectl("logs", name, "--container", container, *words)

    @property
    def url(self) -> str:
        """The service's address in the cluster."""
        if self.mode == "knative":
            service = self.cluster.kubectl.one("ksvc", f"{self.name}-predictor")
            assert service is not None
            return str(service["status"]["address"]["url"])
        service = self.cluster.kubectl.one("service", f"{self.name}-predictor")
        assert service is not None
        headless = service["spec"].get("clusterIP") == "None"
        host = f"http://{self.name}-predictor.{self.cluster.settings.namespace}.svc"
        return f"{host}:8080" if headless else host

    def predict(self, **parameters: object) -> str:
        """The text of one prediction, which must succeed."""
        body = {"instances": ["The secret to a happy life is"], "parameters": parameters}
        status, answer = self.cluster.ask(f"{self.url}/v1/models/{self.model}:predict", body)
        assert status == 200, answer
        [prediction] = json.loads(answer)["predictions"]
        return str(prediction["generated_text"])

    @property
    def revision_url(self) -> str:
        """The address of the newest revision's queue proxies, past Knative's ingress."""
        service = self.cluster.kubectl.one("ksvc", f"{self.name}-predictor")
        assert service is not None
        revision = service["status"]["latestReadyRevisionName"]
        return f"http://{revision}-private.{self.cluster.settings.namespace}.svc"

    def metric(self, name: str) -> list[tuple[dict[str, str], float]]:
        """The samples of a metric, as one replica has them."""
        status, text = self.cluster.ask(f"{self.url}/metrics")
        assert status == 200, text
        return reading.metric(text, name)

    def precision(self) -> str:
        """The precision that the service says it computes in."""
        [(labels, _)] = self.metric("gptj_model_info")
        return labels["precision"]

    def sequences(self) -> int:
        """How many sequences run or wait."""
        names = ("gptj_requests_running", "gptj_requests_waiting")
        return int(sum(value for name in names for _, value in self.metric(name)))

    def load(self, **flags: object) -> RunningLoad:
        """Begin a load on it."""
        return self.cluster.load(self.url, model=self.model, **flags)
