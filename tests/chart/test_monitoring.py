"""Dashboard, alerts and monitors of the chart, against the real server and a real Prometheus."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.chart_values import MANY, MODES
from tests.support.charts import CHART, Object, Release, Values, render
from tests.support.metrics import Scrape
from tests.support.prometheus import RunningPrometheus, promtool
from tests.support.promql import grouping_labels, problems
from tests.support.servers import RunningServer, wait_for

STANDARD = MODES["standard"]

#: Thresholds that a server with any load is above.
LOW: Values = {
    "prometheusRule": {
        "thresholds": {
            "waiting": 0,
            "kvCache": 0.000001,
            "firstTokenSeconds": 0.0001,
            "errorRate": 0.0001,
            "restarts": 0,
        }
    }
}
EVERYTHING: Values = {
    "dashboard": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "podMonitor": {"enabled": True},
    "scaling": {
        "minReplicas": 1,
        "maxReplicas": 2,
        "keda": {"enabled": True, "serverAddress": "http://prometheus:9090"},
    },
}

#: What the tests' load makes none of, so that a panel shows nothing.
NOTHING_HAPPENS = ("failures",)


def monitored(*values: Values) -> Release:
    return render(STANDARD, MANY, EVERYTHING, *values)


def dashboard(release: Release) -> Object:
    [(file, text)] = release.one("ConfigMap")["data"].items()
    assert file == "demo.json"
    return dict(json.loads(text))


def panels(release: Release) -> list[Object]:
    """The dashboard's panels without the rows' titles."""
    return [panel for panel in dashboard(release)["panels"] if panel["type"] != "row"]


def panel_queries(release: Release) -> list[str]:
    return [target["expr"] for panel in panels(release) for target in panel["targets"]]


def alert_rules(release: Release) -> list[Object]:
    [group] = release.one("PrometheusRule")["spec"]["groups"]
    return list(group["rules"])


def expressions(release: Release) -> list[str]:
    """Everything that the chart has Prometheus asked."""
    [trigger] = release.one("ScaledObject")["spec"]["triggers"]
    rules = [rule["expr"] for rule in alert_rules(release)]
    return [*panel_queries(release), *rules, trigger["metadata"]["query"]]


@contextmanager
def load(server: RunningServer) -> Iterator[None]:
    """Requests of every kind that one can send, until the end of the block."""
    ends = threading.Event()

    def ask(number: int) -> None:
        while not ends.is_set():
            server.predict([f"Story {number}"] * 2, min_new_tokens=60, max_new_tokens=60)
            server.post("{")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: Scrape.of(server).value("gptj_requests_running") > 0)
        yield
    finally:
        ends.set()
        for thread in threads:
            thread.join()


@pytest.mark.process
def test_expressions_fit_the_server(server: RunningServer, large: bool, tmp_path: Path) -> None:
    """Their metrics and labels are in a scrape under load; with --large, Prometheus has values."""
    release = monitored(LOW)
    with load(server):
        scrape = Scrape.of(server)
        assert scrape.value("gptj_requests_running") > 0
        asked = [*expressions(release), *queries_of_the_page()]
        found = {text: problems(text, scrape) for text in asked}
        assert len(found) >= 60
        assert {text: what for text, what in found.items() if what} == {}
        if large:
            promtool("check", "metrics", stdin=own_metrics(scrape))
            evaluate(release, server.port, tmp_path)


def queries_of_the_page() -> list[str]:
    """The queries that docs/operations.md recommends."""
    page = (CHART.parents[1] / "docs" / "operations.md").read_text()
    rows = page.split("| question | query |\n")[1].split("\n\n")[0].splitlines()[1:]
    return [re.findall(r"`(.+)`", row)[0] for row in rows]


def own_metrics(scrape: Scrape) -> str:
    """The part of a scrape that is ours: kserve's does not keep to the rules."""
    lines = scrape.text.splitlines(keepends=True)
    return "".join(line for line in lines if re.match(r"(# (HELP|TYPE) )?gptj_", line))


def evaluate(release: Release, port: int, folder: Path) -> None:
    """Have a real Prometheus answer every query and evaluate every alert."""
    rules = release.one("PrometheusRule")["spec"]
    labels = {"namespace": "ml", "pod": "demo-predictor-7d4b9c-x2x9k"}
    with RunningPrometheus(folder, port, labels, rules) as prometheus:
        promtool("check", "rules", str(prometheus.rules))
        prometheus.wait_for_scrapes(6)
        empty = [query for query in panel_queries(release) if not prometheus.query(query)]
        assert [text for text in empty if not any(name in text for name in NOTHING_HAPPENS)] == []
        for text in expressions(release):
            prometheus.query(text)
        alerts = prometheus.alerts()
        assert {alert["health"] for alert in alerts.values()} == {"ok"}, alerts
        assert set(alerts) == {rule["alert"] for rule in alert_rules(release)}
        active = {name for name, alert in alerts.items() if alert["alerts"]}
        assert active >= {"GPTJKVCacheFull", "GPTJSlowFirstToken"}
        assert not active & {"GPTJNotReady", "GPTJNoReplica", "GPTJErrors", "GPTJRestarts"}


SAMPLE = """
# TYPE a_total counter
a_total{outcome="ok"} 1
# TYPE b histogram
b_bucket{le="+Inf"} 1
b_count 1
b_sum 1
"""


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ('sum by (outcome) (rate(a_total{namespace="x",outcome="ok"}[5m]))', []),
        ("histogram_quantile(0.5, sum by (le, pod) (rate(b_bucket[5m])))", []),
        ("rate(a[5m])", ["no metric a"]),
        ("b", ["no metric b"]),
        ('a_total{reason="x"}', ["a_total has no label reason"]),
        ('a_total{outcome="bad"}', ["a_total has no outcome 'bad'"]),
        ('sum by (reason) (a_total{outcome=~"o."})', ["no label reason"]),
        ("sum(b_count) / on(outcome) b_sum", ["no label outcome"]),
    ],
)
def test_what_does_not_fit_is_found(expression: str, found: list[str]) -> None:
    assert problems(expression, Scrape(SAMPLE)) == found


def test_what_is_no_promql_is_found() -> None:
    with pytest.raises(ValueError, match="expected type"):
        problems("sum(rate(a_total))", Scrape(SAMPLE))


def test_legends_name_labels_that_a_query_keeps() -> None:
    for panel in panels(monitored()):
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= grouping_labels(target["expr"]) | {"pod"}, target


def test_every_query_asks_for_this_release_alone() -> None:
    release = monitored()
    for text in expressions(release):
        selectors = re.findall(r"\{(.*?)\}", text)
        assert selectors
        for selector in selectors:
            assert selector.startswith('namespace="ml",pod=~"demo-predictor-.*"'), text
    assert "@" not in release.one("ConfigMap")["data"]["demo.json"]


def test_panels_are_laid_out() -> None:
    everything = dashboard(monitored())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    cells: set[tuple[int, int]] = set()
    for panel in everything:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own


def test_thresholds() -> None:
    """Each is in its own alert."""
    own = {
        "waiting": 7,
        "kvCache": 0.77,
        "firstTokenSeconds": 7.5,
        "errorRate": 0.07,
        "restarts": 7,
        "notReadyFor": "7m",
    }
    rules = {
        rule["alert"]: rule
        for rule in alert_rules(monitored({"prometheusRule": {"thresholds": own}}))
    }
    assert "> 7 and " in rules["GPTJQueueGrows"]["expr"]
    assert rules["GPTJKVCacheFull"]["expr"].endswith("> 0.77")
    assert rules["GPTJSlowFirstToken"]["expr"].endswith("> 7.5")
    assert rules["GPTJErrors"]["expr"].endswith("> 0.07")
    assert rules["GPTJRestarts"]["expr"].endswith("> 7")
    assert rules["GPTJNotReady"]["for"] == rules["GPTJNoReplica"]["for"] == "7m"


def test_no_alert_for_a_service_that_scales_to_zero() -> None:
    release = render({"prometheusRule": {"enabled": True}, "scaling": {"minReplicas": 0}})
    assert "GPTJNoReplica" not in {rule["alert"] for rule in alert_rules(release)}


@pytest.mark.parametrize("mode", MODES)
def test_service_monitor(mode: str) -> None:
    release = render(
        MODES[mode], {"serviceMonitor": {"enabled": True, "interval": "7s", "labels": {"a": "b"}}}
    )
    monitor, service = release.one("ServiceMonitor"), release.one("Service")
    labels = monitor["spec"]["selector"]["matchLabels"]
    assert labels.items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["labels"]["a"] == "b"
    # Nothing else of the release has them all.
    assert not any(
        labels.items() <= one["metadata"]["labels"].items()
        for one in release.objects
        if one is not service
    )
    [endpoint], [port] = monitor["spec"]["endpoints"], service["spec"]["ports"]
    assert endpoint == {"port": port["name"], "path": "/metrics", "interval": "7s"}
    assert port["targetPort"] == ("user-port" if mode == "knative" else "http1")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"serving.kserve.io/inferenceservice": "demo"}


def test_service_monitor_with_tls() -> None:
    release = render(
        STANDARD, {"serviceMonitor": {"enabled": True}, "tls": {"existingSecret": "x"}}
    )
    [endpoint] = release.one("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    [port] = release.one("Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (8443, "https")


@pytest.mark.process
def test_monitors_ask_what_the_server_answers(server: RunningServer) -> None:
    [endpoint] = monitored().one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert server.client.get(endpoint["path"]).status_code == 200


def test_vllm_s_names_are_asked_for() -> None:
    assert "--metrics_compat" not in render().container["args"]
    arguments = render({"metrics": {"compat": "vllm"}}).container["args"]
    assert arguments[arguments.index("--metrics_compat") + 1] == "vllm"


def test_alerts_say_what_to_do() -> None:
    for rule in alert_rules(monitored()):
        assert rule["alert"].startswith("GPTJ")
        assert rule["labels"]["severity"] in {"warning", "critical"}
        for text in rule["annotations"].values():
            assert re.fullmatch(r"[A-Z].*\.", text)
        assert set(rule["annotations"]) == {"summary", "action"}
    assert (CHART / "files" / "dashboard.json").is_file()
