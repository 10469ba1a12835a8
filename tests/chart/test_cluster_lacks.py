"""What the chart says of a cluster that lacks what the values need."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import helm_python
import pytest
import yaml

from tests.support.chart_values import MANY, MODES
from tests.support.charts import CHART, Values, merged, render

KSERVE, KNATIVE = "serving.kserve.io/v1beta1", "serving.knative.dev/v1"
PROMETHEUS, KEDA = "monitoring.coreos.com/v1", "keda.sh/v1alpha1"
GATEWAY, POOL = "gateway.networking.k8s.io/v1", "inference.networking.k8s.io/v1"
ALL = [KSERVE, KNATIVE, PROMETHEUS, KEDA, GATEWAY, POOL]

STANDARD = MODES["standard"]
SCALED: Values = merged(
    STANDARD,
    MANY,
    {"scaling": {"keda": {"enabled": True, "serverAddress": "http://prometheus:9090"}}},
)
ROUTED: Values = merged(
    STANDARD,
    {"externalRoute": {"kind": "HTTPRoute", "httpRoute": {"parentRefs": [{"name": "public"}]}}},
)
POOLED: Values = merged(
    ROUTED,
    {"externalRoute": {"httpRoute": {"inferencePool": "texts"}}, "metrics": {"compat": "vllm"}},
)
INGRESS: Values = merged(STANDARD, {"externalRoute": {"kind": "Ingress", "hostnames": ["a.b"]}})

#: Values, the API that is missing, and what is said of it. None: it is not needed.
CASES: list[tuple[Values, str, str | None]] = [
    ({}, KSERVE, "the cluster has no KServe .*install KServe"),
    ({}, KNATIVE, "deploymentMode Knative, .*no Knative Serving .*set deploymentMode Standard"),
    (STANDARD, KNATIVE, None),
    ({}, PROMETHEUS, None),
    ({}, KEDA, None),
    (SCALED, KEDA, "scaling.keda.enabled, .*no KEDA .*set scaling.keda.enabled false"),
    (ROUTED, GATEWAY, "externalRoute.kind HTTPRoute, .*no Gateway API .*set .*kind Ingress"),
    (INGRESS, GATEWAY, None),
    (ROUTED, POOL, None),
    (POOLED, POOL, "externalRoute.httpRoute.inferencePool, .*no InferencePool .*install"),
    (merged(POOLED, {"benchmark": {"only": True, "batchSize": 1}}), GATEWAY, None),
    ({"benchmark": {"only": True, "batchSize": 1}}, KSERVE, None),
    ({"benchmark": {"only": True, "batchSize": 1}}, KNATIVE, None),
    *(
        ({name: {"enabled": True}}, PROMETHEUS, f"{name}.enabled, .*no Prometheus operator")
        for name in ("podMonitor", "serviceMonitor", "prometheusRule")
    ),
]


def problems(values: Values, apis: list[str], tmp_path: Path) -> list[str]:
    """What the named template says of a cluster with these APIs."""
    folder = tmp_path / CHART.name
    shutil.copytree(CHART, folder)
    given = json.dumps([*apis])
    call = f'include "gptj.missing" (dict "root" . "has" ({json.dumps(given)} | fromJsonArray))'
    (folder / "templates" / "missing.txt").write_text("{{ " + call + " }}")
    with helm_python.Chart.load(folder) as chart:
        files = chart.render(values, name="demo", namespace="ml")
    return list(json.loads(files[f"{CHART.name}/templates/missing.txt"]))


@pytest.mark.parametrize(("values", "missing", "words"), CASES)
def test_the_list_of_apis(values: Values, missing: str, words: str | None, tmp_path: Path) -> None:
    apis = ["v1", "v1/Pod", *(one for one in ALL if one != missing)]
    found = problems(values, apis, tmp_path)
    if words is None:
        assert found == []
    else:
        [problem] = found
        assert missing in problem
        assert re.search(words, problem)


def test_nothing_is_known_without_a_cluster(tmp_path: Path) -> None:
    assert problems(SCALED, ["v1", "apps/v1"], tmp_path) == []
    assert render(SCALED).objects


@contextmanager
def api_server(apis: list[str]) -> Iterator[str]:
    """A server that knows only which APIs there are, and the kubeconfig for it."""
    kinds = {"v1": "Pod", **dict.fromkeys(["apps/v1", *apis], "Thing")}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            answer = self.answer(path)
            body = json.dumps(answer or {"kind": "Status", "status": "Failure", "code": 404})
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def answer(self, path: str) -> Values | None:
            if path == "/version":
                return {"major": "1", "minor": "34", "gitVersion": "v1.34.4"}
            if path == "/api":
                return {"kind": "APIVersions", "versions": ["v1"]}
            if path == "/apis":
                versions = [
                    {"groupVersion": v, "version": v.split("/")[1]} for v in kinds if "/" in v
                ]
                groups = [
                    {
                        "name": v["groupVersion"].split("/")[0],
                        "versions": [v],
                        "preferredVersion": v,
                    }
                    for v in versions
                ]
                return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
            version = path.removeprefix("/apis/").removeprefix("/api/")
            if version in kinds:
                one = {
                    "name": "things",
                    "namespaced": True,
                    "kind": kinds[version],
                    "verbs": ["get"],
                }
                return {"kind": "APIResourceList", "groupVersion": version, "resources": [one]}
            return None

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Nothing: the test's output is no access log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            cluster = {"server": f"http://127.0.0.1:{server.server_port}"}
            yield yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "a", "cluster": cluster}],
                    "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
                    "users": [{"name": "a", "user": {}}],
                    "current-context": "a",
                }
            )
        finally:
            server.shutdown()


def installed(apis: list[str]) -> str:
    """How the installation into such a cluster fails; none can succeed."""
    with (
        api_server(apis) as kubeconfig,
        helm_python.Config(kubeconfig_content=kubeconfig, namespace="ml") as config,
        helm_python.Chart.load(CHART) as chart,
        pytest.raises(helm_python.HelmError) as refusal,
    ):
        config.install(chart, "demo", {}, namespace="ml", dry_run="server")
    return str(refusal.value)


def test_helm_asks_the_cluster() -> None:
    """Helm itself puts what the cluster has into the list."""
    said = installed([KSERVE])
    assert "this cluster lacks what these values need:" in said
    assert "no Knative Serving (serving.knative.dev/v1)" in said
    assert "no KServe" not in said
    assert "no KServe (serving.kserve.io/v1beta1)" in installed([KNATIVE])
    # With both the templates are rendered, and what fails is behind them.
    assert "this cluster lacks" not in installed([KSERVE, KNATIVE])


@pytest.mark.large
@pytest.mark.process
def test_a_helm_of_the_machine(tmp_path: Path) -> None:
    helm = shutil.which("helm")
    assert helm, "make test-all needs helm, version 3 or 4, in PATH"

    def template(*apis: str) -> subprocess.CompletedProcess[str]:
        flags = [f"--api-versions={one}" for one in apis]
        # An older Helm takes an older Kubernetes for granted than the chart needs.
        command = [helm, "template", "demo", str(CHART), "--kube-version=1.34.0", *flags]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert template().returncode == 0
    assert template("v1/Pod", KSERVE, KNATIVE).returncode == 0
    refused = template("v1/Pod", KSERVE)
    assert refused.returncode != 0
    assert "no Knative Serving (serving.knative.dev/v1)" in refused.stderr
    assert "no KServe (serving.kserve.io/v1beta1)" in template("v1/Pod").stderr
