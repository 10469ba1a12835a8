"""The way from outside to the predictor: HTTPRoute, Ingress, and the address in the notes."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.chart_values import MODES
from tests.support.charts import Object, Release, Values, render
from tests.support.servers import RunningServer

STANDARD = MODES["standard"]
GATEWAY: Object = {"name": "public", "namespace": "gateways"}


def http_route(gateway: Values | None = None, **values: object) -> Values:
    """A route for GATEWAY, with values of ``httpRoute`` and others of ``externalRoute``."""
    route = {"parentRefs": [GATEWAY], **(gateway or {})}
    return {"externalRoute": {"kind": "HTTPRoute", "httpRoute": route, **values}}


def ingress(**values: object) -> Values:
    return {"externalRoute": {"kind": "Ingress", "hostnames": ["texts.example.com"], **values}}


def commands(release: Release) -> list[str]:
    """The notes' commands that send a request."""
    lines = [line.strip() for line in release.notes.splitlines()]
    return [line for line in lines if line.startswith(("URL=", "curl "))]


def test_http_route() -> None:
    """Field by field: https://gateway-api.sigs.k8s.io/reference/spec/#httproutespec"""
    values = http_route(hostnames=["texts.example.com"], annotations={"a": "b"})
    route = render(STANDARD, values).one("HTTPRoute")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    # KServe makes an HTTPRoute by the InferenceService's name, and one by the predictor's.
    assert route["metadata"]["name"] == "demo-external"
    assert route["metadata"]["annotations"] == {"a": "b"}
    assert route["spec"] == {
        "parentRefs": [GATEWAY],
        "hostnames": ["texts.example.com"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "timeouts": {"request": "300s"},
                "backendRefs": [{"name": "demo-predictor", "port": 80}],
            }
        ],
    }


def test_ingress() -> None:
    tls = [{"secretName": "texts", "hosts": ["texts.example.com"]}]
    names = {"className": "nginx", "tls": tls}
    values = ingress(ingress=names, paths=["/v1", "/v2"], annotations={"a": "b"})
    one = render(STANDARD, values).one("Ingress")
    assert one["metadata"]["name"] == "demo-external"
    assert one["metadata"]["annotations"] == {"a": "b"}
    assert one["spec"]["ingressClassName"] == "nginx"
    assert one["spec"]["tls"] == tls
    [rule] = one["spec"]["rules"]
    assert rule["host"] == "texts.example.com"
    backend = {"service": {"name": "demo-predictor", "port": {"number": 80}}}
    assert rule["http"]["paths"] == [
        {"path": path, "pathType": "Prefix", "backend": backend} for path in ("/v1", "/v2")
    ]
    spec = render(STANDARD, ingress()).one("Ingress")["spec"]
    assert not {"ingressClassName", "tls"} & set(spec)


def test_the_backend_is_the_service_that_the_test_asks() -> None:
    """KServe's, at its port 80; over HTTPS too."""
    for tls in ({}, {"tls": {"existingSecret": "certificate"}}):
        release = render(STANDARD, http_route(), tls)
        [backend] = release.one("HTTPRoute")["spec"]["rules"][0]["backendRefs"]
        [test] = release.one("Pod")["spec"]["containers"]
        host = re.escape(f"//{backend['name']}.ml.svc")
        assert re.search(rf"{host}(:80)?$", test["args"][-2])
    assert backend["port"] == 80


@pytest.mark.parametrize("seconds", [1, 5, 300, 1200, 99_999])
def test_the_server_answers_before_the_gateway_gives_up(seconds: int) -> None:
    release = render(STANDARD, http_route(), {"timeoutSeconds": seconds})
    limit = release.one("HTTPRoute")["spec"]["rules"][0]["timeouts"]["request"]
    # GEP-2257: a number of at most five digits, and a unit.
    assert re.fullmatch(r"[0-9]{1,5}s", limit)
    args = release.container["args"]
    own = int(args[args.index("--max_request_seconds") + 1])
    assert own <= int(limit[:-1]) == release.predictor["timeout"]
    assert own < int(limit[:-1]) or seconds == 1


def test_pool_instead_of_the_service() -> None:
    values = http_route({"inferencePool": "texts"}, paths=["/v1"])
    release = render(STANDARD, values, {"metrics": {"compat": "vllm"}})
    [rule] = release.one("HTTPRoute")["spec"]["rules"]
    assert rule["backendRefs"] == [
        {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "texts"}
    ]
    assert rule["timeouts"] == {"request": "300s"}


@pytest.mark.parametrize("kind", ["HTTPRoute", "Ingress"])
def test_none_without_a_service(kind: str) -> None:
    only: Values = {"benchmark": {"only": True, "batchSize": 1}}
    assert not render(STANDARD, only, {"externalRoute": {"kind": kind}}).has(kind)


ADDRESS = "kubectl get gateway {} -o jsonpath='{{.status.addresses[0].value}}'"


@pytest.mark.parametrize(
    ("values", "url"),
    [
        (http_route(hostnames=["a.example.com", "b.example.com"]), "https://a.example.com"),
        (http_route({"scheme": "http"}, hostnames=["a.example.com"]), "http://a.example.com"),
        (
            http_route({"parentRefs": [{**GATEWAY, "port": 8443}]}, hostnames=["a.example.com"]),
            "https://a.example.com:8443",
        ),
        (http_route(), f"https://$({ADDRESS.format('public -n gateways')})"),
        (
            http_route({"parentRefs": [{"name": "public", "port": 81}], "scheme": "http"}),
            f"http://$({ADDRESS.format('public -n ml')}):81",
        ),
        (ingress(), "http://texts.example.com"),
        (ingress(ingress={"tls": [{"secretName": "a"}]}), "https://texts.example.com"),
    ],
)
def test_the_notes_ask_the_real_address(values: Values, url: str) -> None:
    release = render(STANDARD, values)
    assert commands(release)[0] == f"URL={url}"
    assert "port-forward" not in release.notes
    assert "localhost" not in render(STANDARD, values, {"tls": {"existingSecret": "a"}}).notes


@pytest.mark.process
def test_the_notes_command_reaches_the_server(server: RunningServer) -> None:
    """By a host name, which a gateway's address stands for, and by that address."""
    address = f"127.0.0.1:{server.port}"
    named = f'curl() {{ command curl --silent --connect-to "::{address}" "$@"; }}'
    unnamed = f"kubectl() {{ echo {address}; }}"
    for values, words in (
        (http_route({"scheme": "http"}, hostnames=["texts.example.com"]), named),
        (ingress(), named),
        (http_route({"scheme": "http"}), unnamed),
    ):
        script = "\n".join([words, *commands(render(STANDARD, values))])
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert "Right now is the perfect time to" in done.stdout, done.stderr


def test_a_word_about_the_time_limits_of_an_ingress() -> None:
    said = "An Ingress says nothing of time limits"
    assert said in render(STANDARD, ingress()).notes
    limits = {"nginx.ingress.kubernetes.io/proxy-read-timeout": "300"}
    assert said not in render(STANDARD, ingress(annotations=limits)).notes
    assert said not in render(STANDARD, http_route()).notes
