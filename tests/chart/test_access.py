"""API keys, HTTPS, trusted proxies: who may ask, and how."""

from __future__ import annotations

import ipaddress

import pytest

from tests.support.chart_values import GRPC, MODES
from tests.support.charts import Object, Release, Values, merged, render

KEYS: Values = {"apiKeys": {"existingSecret": "callers", "key": "api.keys"}}
TLS: Values = merged(MODES["standard"], {"tls": {"existingSecret": "certificate"}})


def flag(release: Release, name: str) -> str | None:
    args = release.container["args"]
    return str(args[args.index(name) + 1]) if name in args else None


def secrets(pod: Object) -> dict[str, dict[str, str]]:
    """Where a pod has Secrets: the path of each file, and the Secret and key that it is."""
    [container] = pod["containers"]
    mounts = {mount["name"]: mount for mount in container.get("volumeMounts", [])}
    found = {}
    for volume in pod.get("volumes", []):
        if "secret" in volume:
            mount = mounts[volume["name"]]
            assert mount["readOnly"] is True
            assert "subPath" not in mount  # such a file would never change
            for item in volume["secret"]["items"]:
                found[f"{mount['mountPath']}/{item['path']}"] = {
                    volume["secret"]["secretName"]: item["key"]
                }
    return found


@pytest.mark.parametrize("mode", MODES)
def test_the_server_and_the_test_pod_have_the_keys(mode: str) -> None:
    release = render(MODES[mode], KEYS)
    path = flag(release, "--api_key_file")
    assert secrets(release.predictor) == {path: {"callers": "api.keys"}}
    [pod] = [one["spec"] for one in release.all("Pod")]
    assert secrets(pod) == secrets(release.predictor)
    assert pod["containers"][0]["env"] == [{"name": "API_KEY_FILE", "value": path}]
    for job in release.all("Job"):
        assert not secrets(job["spec"]["template"]["spec"])
    assert flag(release, "--open_metrics") is None
    assert flag(render(KEYS, {"apiKeys": {"openMetrics": True}}), "--open_metrics") == "true"


def test_without_keys_and_certificate() -> None:
    release = render()
    assert not {"--api_key_file", "--open_metrics", "--ssl_certfile"} & set(
        release.container["args"]
    )
    [pod] = [one["spec"] for one in release.all("Pod")]
    assert not {"volumes"} & set(pod)
    assert not {"env", "volumeMounts"} & set(pod["containers"][0])
    assert not secrets(release.predictor)


def test_probes_need_no_key() -> None:
    """Their paths are among those that are open: the contract's."""
    container = render(KEYS).container
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert set(container[kind]["httpGet"]) == {"path", "port"}
        assert container[kind]["httpGet"]["path"] in (
            "/v1/models/eleutherai-gpt-j-6b",
            "/v2/health/live",
        )


def test_https_everywhere() -> None:
    release = render(TLS, {"networkPolicy": {"enabled": True}, "podMonitor": {"enabled": True}})
    container = release.container
    assert container["ports"] == [{"name": "https", "containerPort": 8443, "protocol": "TCP"}]
    assert flag(release, "--http_port") == "8443"
    files = {flag(release, "--ssl_certfile"), flag(release, "--ssl_keyfile")}
    assert set(secrets(release.predictor)) == files
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[kind]["httpGet"]["scheme"] == "HTTPS"
        assert container[kind]["httpGet"]["port"] == 8443
    [rule] = release.one("NetworkPolicy", "predictor")["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8443, "protocol": "TCP"}]
    [endpoint] = release.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["scheme"]) == ("https", "https")
    [pod] = [one["spec"] for one in release.all("Pod")]
    # A caller gets the certificate and not the private key.
    assert secrets(pod) == {
        flag(release, "--ssl_certfile"): {"certificate": "tls.crt"},
    }
    assert pod["containers"][0]["args"][-2:] == [
        "https://demo-predictor.ml.svc:80",
        "https://demo-predictor.ml.svc:8443",
    ]
    assert "localhost:8443" in release.notes
    assert "8080" not in release.notes
    assert "http://" not in release.notes


def test_grpc() -> None:
    """Its port comes first, as KServe's Service has that one as its port 80; HTTP is beside it."""
    release = render(GRPC, {"networkPolicy": {"enabled": True}, "podMonitor": {"enabled": True}})
    ports = [{"name": "h2c", "containerPort": 8081, "protocol": "TCP"}]
    ports.append({"name": "http1", "containerPort": 8080, "protocol": "TCP"})
    assert release.container["ports"] == ports
    assert (flag(release, "--enable_grpc"), flag(release, "--grpc_port")) == ("true", "8081")
    [ingress] = release.one("NetworkPolicy", "-predictor")["spec"]["ingress"]
    assert ingress["ports"] == [{"port": one, "protocol": "TCP"} for one in (8081, 8080)]
    [scraped] = release.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert scraped["port"] == "http1"
    probes = [release.container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    assert {probe["httpGet"]["port"] for probe in probes} == {8080}
    assert "demo-predictor.ml.svc:80\n" in release.notes
    assert "HTTP, which KServe's Service has at port 8080" in release.notes
    over_http = render(MODES["standard"])
    assert flag(over_http, "--enable_grpc") == "false"
    assert [port["name"] for port in over_http.container["ports"]] == ["http1"]


def test_trusted_proxies() -> None:
    """Behind Knative every private address is believed, and the caller's is what is left."""
    believed = flag(render(), "--trusted_proxies")
    assert believed
    networks = [ipaddress.ip_network(one) for one in believed.split(",")]

    def trusted(address: str) -> bool:
        parsed = ipaddress.ip_address(address)
        return any(parsed in one for one in networks if one.version == parsed.version)

    for address in ("127.0.0.1", "::1", "10.1.2.3", "172.31.0.1", "192.168.7.7", "100.100.0.1"):
        assert trusted(address), address
    for address in ("172.32.0.1", "8.8.8.8", "100.128.0.1", "2001:db8::1"):
        assert not trusted(address), address
    assert flag(render(MODES["standard"]), "--trusted_proxies") is None
    assert flag(render({"trustedProxies": []}), "--trusted_proxies") is None
    given = {"trustedProxies": ["192.0.2.1", "fd00::/8"]}
    for mode in MODES.values():
        assert flag(render(mode, given), "--trusted_proxies") == "192.0.2.1,fd00::/8"
