"""What the chart renders, run by the real command line, server and pull."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gptj_predictor.cli import build_parser
from gptj_predictor.cli.flags import validated
from gptj_predictor.cli.serve import read_settings
from gptj_predictor.settings import PullSettings
from tests.support.chart_values import MATRIX
from tests.support.charts import Object, Release, Values, example_values, render
from tests.support.hub import HubServer
from tests.support.pulling import MODEL_ID, pickled
from tests.support.servers import NAME, RunningServer, environment, free_port

pytestmark = pytest.mark.slow  # kserve's and torch's imports


def literal_environment(container: Object) -> dict[str, str]:
    """The variables whose value is in the container's spec."""
    return {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def job_container(release: Release, name: str) -> Object:
    [container] = release.one("Job", f"-{name}-")["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.mark.parametrize("name", MATRIX)
def test_the_command_line_takes_the_arguments(name: str) -> None:
    release = render(MATRIX[name])
    parser = build_parser()
    for job in ("pull", "benchmark"):
        if release.has("Job", f"-{job}-"):
            parser.parse_args(job_container(release, job)["args"])
    if not release.has("InferenceService"):
        return
    container = release.container
    flags = parser.parse_args(container["args"])
    settings, defaults, model_name = read_settings(flags, literal_environment(container))
    probe = container["startupProbe"]
    assert settings.wait_for_snapshot == probe["periodSeconds"] * probe["failureThreshold"]
    assert flags.http_port == container["ports"][0]["containerPort"]
    assert not flags.enable_grpc  # Knative gives a container one port
    assert model_name is not None
    assert all(
        container[kind]["httpGet"]["path"] == f"/v1/models/{model_name}"
        for kind in ("startupProbe", "readinessProbe")
    )
    if name.startswith("everything"):
        assert (defaults.min_length, defaults.max_length, defaults.top_k) == (5, 100, 40)
        assert (defaults.temperature, defaults.top_p) == (0.5, 0.95)
        assert defaults.repetition_penalty == 1.1
        assert settings.max_batch_size == 64
    # The server looks for what the Job pulls.
    if release.has("Job", "-pull-"):
        pull = validated(
            PullSettings, vars(parser.parse_args(job_container(release, "pull")["args"]))
        )
        assert (pull.model_id, pull.tag) == (settings.model, settings.tag)
        assert pull.dest == settings.cache
    else:
        assert settings.tag is None


@pytest.mark.process
def test_from_install_to_prediction(tmp_path: Path) -> None:
    """As on a cluster: the predictor waits, the Job pulls, the probes and the test pod succeed.

    Then the benchmark Job runs twice, as a Job that is restarted.
    """
    values: Values = {"download": {"hfToken": {"existingSecret": "hub"}}}
    flags = ["--min-tokens", "20", "--max-tokens", "24", "--step", "4", "--rounds", "1"]
    values["benchmark"] = {"batchSize": 2, "extraArgs": flags}
    values["allow"] = {"sharedReadWriteOnce": True}
    release = render(example_values("one-gpu"), values)
    container, pull = release.container, job_container(release, "pull")
    cache = str(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    with HubServer() as hub:
        hub.add(MODEL_ID, pickled(tmp_path / "hub"), gated_token="secret")
        [token] = [one["name"] for one in pull["env"]]
        arguments = (*container["args"][1:], "--cache", cache)
        with RunningServer(*arguments, grpc=False, **literal_environment(container)) as server:
            run_job(pull, "--dest", cache, **{token: "secret"}, HF_ENDPOINT=hub.endpoint)
            server.wait_until(container["startupProbe"]["httpGet"]["path"], 200)
            assert f"waiting up to 1740 s more for a snapshot of {MODEL_ID}" in server.log
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                path = container[probe]["httpGet"]["path"]
                assert server.client.get(path).status_code == 200
            [pod] = [one["spec"] for one in release.all("Pod")]
            check_test_pod(pod, server)
            [prediction] = server.predict(["The secret to a happy life is to"], min_length=1)
            assert prediction["generated_text"].startswith("The secret")
    job = job_container(release, "benchmark")
    output = job["args"][job["args"].index("--output") + 1]
    here = tmp_path / "cache" / Path(output).relative_to("/mnt/models")
    for _ in range(2):
        log = run_job(job, "--cache", cache, "--output", str(here))
        assert re.search(r"\| *tokens \| *V100 \|", log)
        cells = json.loads((here / "results.json").read_text())["cells"]
        measured = [(cell["batch"], cell["tokens"], cell["status"]) for cell in cells]
        assert measured == [(n, tokens, "done") for n in (1, 2) for tokens in (20, 24)]


def run_job(container: Object, *flags: str, **variables: str) -> str:
    """Run a Job's arguments, with further flags that override them; return the output."""
    done = subprocess.run(
        [sys.executable, "-m", "gptj_predictor", *container["args"], *flags],
        env=environment(**literal_environment(container), **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_test_pod(pod: Object, server: RunningServer) -> None:
    """Run the script of ``helm test`` with addresses of this machine."""
    [container] = pod["containers"]
    script, name, seconds, *urls = container["args"]
    assert urls == ["http://demo-predictor.ml.svc", "http://demo-predictor.ml.svc:8080"]
    assert float(seconds) > 0

    def run(name: str, seconds: str, *ports: int) -> subprocess.CompletedProcess[str]:
        addresses = [f"http://127.0.0.1:{port}" for port in ports]
        return subprocess.run(
            [sys.executable, *container["command"][1:], script, name, seconds, *addresses],
            capture_output=True,
            text=True,
            check=False,
        )

    unused = free_port()
    done = run(name, seconds, unused, server.port)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Right now is the perfect time to")
    assert run("another", "0", unused, server.port).returncode == 1


@pytest.mark.slow
def test_the_dashboard_shows_metrics_that_exist(server: RunningServer) -> None:
    server.predict(["Right now"], max_new_tokens=2)
    exposed = server.client.get("/metrics").text
    release = render({"dashboard": {"enabled": True}, "podMonitor": {"enabled": True}})
    [(file, text)] = release.one("ConfigMap")["data"].items()
    assert file == "demo.json"
    dashboard = json.loads(text)
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    names = {name for query in queries for name in re.findall(r"(\w+)\{", query)}
    assert len(names) >= 5
    for name in names:
        assert re.search(rf"^{name}\b", exposed, re.MULTILINE), name
    for query in queries:
        for label, value in re.findall(r'(\w+)="([^"]*)"', query):
            assert {"namespace": "ml", "model_name": NAME}[label] == value
    assert all("{{" not in query for query in queries)
    [endpoint] = release.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert server.client.get(endpoint["path"]).status_code == 200
