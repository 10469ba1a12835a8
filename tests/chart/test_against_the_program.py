"""What the chart renders, run by the real command line, server and pull."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from gptj_predictor.cli import build_parser
from gptj_predictor.cli.flags import validated
from gptj_predictor.cli.serve import read_settings
from gptj_predictor.demo import DEMO_SNAPSHOT
from gptj_predictor.settings import PullSettings
from tests.support.chart_values import GRPC, MATRIX, MODES
from tests.support.charts import Object, Release, Values, example_values, render
from tests.support.hub import HubServer
from tests.support.pulling import MODEL_ID, pickled
from tests.support.secrets import KEYS, Authority
from tests.support.servers import RunningServer, environment, free_port

pytestmark = pytest.mark.slow  # kserve's and torch's imports

ON_CPUS: Values = {"gpu": {"count": 0}}


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
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert flags.http_port == ports.get("https") or ports["http1"]
    # Knative gives a container one port.
    assert ports.get("h2c") == (flags.grpc_port if flags.enable_grpc else None)
    gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
    devices = [f"cuda:{index}" for index in range(gpus)]
    assert settings.device == (",".join(devices) or "auto")
    mounted = tuple(f"{mount['mountPath']}/" for mount in container["volumeMounts"])
    for path in (settings.api_key_file, flags.ssl_certfile, flags.ssl_keyfile):
        assert path is None or str(path).startswith(mounted)
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
        assert (settings.max_queued_requests, settings.max_queued_tokens) == (64, 9000)
        assert settings.trusted_proxies == "192.0.2.1,2001:db8::/32"
        assert settings.log_format == "json"
        assert settings.open_metrics
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
        # The last flag wins: this machine need have no GPU.
        arguments = (*container["args"][1:], "--cache", cache, "--device", "cpu")
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
        log = run_job(job, "--cache", cache, "--output", str(here), "--device", "cpu")
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
    _, name, seconds, *urls = container["args"]
    assert urls == ["http://demo-predictor.ml.svc", "http://demo-predictor.ml.svc:8080"]
    assert float(seconds) > 0
    unused = free_port()
    done = run_test_pod(container, name, seconds, unused, server.port)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Right now is the perfect time to")
    assert run_test_pod(container, "another", "0", unused, server.port).returncode == 1


def run_test_pod(
    container: Object, name: str, seconds: str, *ports: int, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The script of ``helm test`` for these ports of this machine, over the protocol it has."""
    script, *_, url = container["args"]
    scheme, separator, _ = url.rpartition("://")
    addresses = [f"{scheme}{separator}127.0.0.1:{port}" for port in ports]
    return subprocess.run(
        [sys.executable, *container["command"][1:], script, name, seconds, *addresses],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.process
def test_a_replica_that_stops_loses_nothing() -> None:
    """As where routers learn late: they still send for a while after the signal."""
    times = {"drainDelaySeconds": 2, "terminationGracePeriodSeconds": 20}
    release = render(MODES["standard"], ON_CPUS, times, {"download": {"enabled": False}})
    container = release.container
    with RunningServer(*container["args"][1:], "--model", str(DEMO_SNAPSHOT)) as server:
        ready = container["readinessProbe"]["httpGet"]["path"]
        server.wait_until(ready, 200)
        server.process.send_signal(signal.SIGTERM)
        signaled = time.monotonic()
        server.wait_until(ready, 503)
        while time.monotonic() < signaled + 1.5:
            server.predict(["Right now"], max_new_tokens=8)
        assert server.process.wait(20) == 0


@pytest.mark.process
def test_https_and_api_keys(tmp_path: Path) -> None:
    """Probes, ``helm test`` and the notes' curl over HTTPS; those that ask need a key."""
    values: Values = {
        "apiKeys": {"existingSecret": "callers", "key": "api.keys"},
        "tls": {"existingSecret": "certificate"},
        "download": {"enabled": False},
        "drainDelaySeconds": 0,  # else the server's end would take as long
    }
    release = render(MODES["standard"], ON_CPUS, values)
    container = release.container
    folders = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    authority = Authority()
    (tmp_path / "tls").mkdir()
    for name, content in authority.issue().items():
        (tmp_path / "tls" / name.replace("_", ".")).write_bytes(content)
    (tmp_path / "api-keys").mkdir()
    (tmp_path / "api-keys" / "keys").write_text("\n".join(["# ours", "", *KEYS, ""]))

    def here(text: str) -> str:
        for name in ("tls", "api-keys"):
            text = text.replace(folders[name], str(tmp_path / name))
        return text

    # The last flag wins: the bundled demo, from no model cache.
    with RunningServer(*map(here, container["args"][1:]), "--model", str(DEMO_SNAPSHOT)) as server:
        server.client.close()
        # As a kubelet, which does not check the certificate.
        address = f"https://127.0.0.1:{server.port}"
        server.client = httpx.Client(base_url=address, timeout=120, verify=False)
        server.wait_until(container["startupProbe"]["httpGet"]["path"], 200)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            get = container[probe]["httpGet"]
            assert get["scheme"] == "HTTPS"
            assert server.client.get(get["path"]).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{server.port}/")
        [pod] = [one["spec"] for one in release.all("Pod")]
        [test] = pod["containers"]
        name, seconds = test["args"][1:3]
        variables = {key: here(value) for key, value in literal_environment(test).items()}
        done = run_test_pod(test, name, seconds, free_port(), server.port, **variables)
        assert done.returncode == 0, done.stderr
        answer = curl_of_the_notes(release, address, tmp_path / "api-keys" / "keys")
        assert "Right now is the perfect time to" in answer
        wrong = tmp_path / "wrong"
        wrong.write_text("no-such-key-0123456789\n")
        assert "predictions" not in curl_of_the_notes(release, address, wrong)
        refused = run_test_pod(
            test, name, "0", server.port, **{**variables, "API_KEY_FILE": str(wrong)}
        )
        assert refused.returncode == 1
        assert "the prediction was answered with 401" in refused.stderr
        # A certificate that is not the Secret's, even one for the same name by the same authority.
        (tmp_path / "other.crt").write_bytes(authority.issue()["tls_crt"])
        variables["CERTIFICATE_FILE"] = str(tmp_path / "other.crt")
        refused = run_test_pod(test, name, "0", server.port, **variables)
        assert refused.returncode == 1
        assert "CERTIFICATE_VERIFY_FAILED" in refused.stdout


@pytest.mark.process
def test_grpc(tmp_path: Path) -> None:
    """The container's arguments serve it, probes ask over HTTP, and ``helm test`` over gRPC."""
    keys: Values = {"apiKeys": {"existingSecret": "callers"}, "download": {"enabled": False}}
    release = render(GRPC, ON_CPUS, keys, {"drainDelaySeconds": 0})
    container = release.container
    (tmp_path / "keys").write_text(f"{KEYS[0]}\n")
    [folder] = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "api-keys"]
    arguments = [one.replace(folder, str(tmp_path)) for one in container["args"][1:]]
    [pod] = [one["spec"] for one in release.all("Pod")]
    [test] = pod["containers"]
    assert test["args"][3:] == ["demo-predictor.ml.svc:80", "demo-predictor.ml.svc:8081"]
    with RunningServer(*arguments, "--model", str(DEMO_SNAPSHOT)) as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            server.wait_until(container[probe]["httpGet"]["path"], 200)
        name, variables = test["args"][1], {"API_KEY_FILE": str(tmp_path / "keys")}
        done = run_test_pod(test, name, "60", free_port(), server.grpc_port, **variables)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("Right now is the perfect time to")
        refused = run_test_pod(test, "another", "0", server.grpc_port, **variables)
        assert refused.returncode == 1
        assert "NOT_FOUND: Model with name another" in refused.stderr
        nothing = run_test_pod(test, name, "0", server.port, **variables)  # HTTP's port
        assert nothing.returncode == 1


def curl_of_the_notes(release: Release, address: str, keys: Path) -> str:
    """What the curl command of the notes prints, for a server of this machine.

    The notes take the API key from a Secret; here ``kubectl`` prints the file with the keys.
    """
    lines = [line.strip() for line in release.notes.splitlines()]
    commands = [line for line in lines if line.startswith(("KEY=", "curl "))]
    assert len(commands) == 2
    kubectl = f"kubectl() {{ cat {shlex.quote(str(keys))}; }}"
    done = subprocess.run(
        ["bash", "-c", "\n".join([kubectl, f"URL={address}", *commands])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
