"""Values that the chart refuses, and the messages."""

from __future__ import annotations

import re

import helm_python
import pytest

from tests.support.chart_values import GRPC, MANY, MODES
from tests.support.charts import Values, merged, nested, render

STANDARD = MODES["standard"]
KEDA: Values = {"scaling": {"keda": {"enabled": True, "serverAddress": "http://prometheus:9090"}}}
HTTP_ROUTE: Values = merged(
    STANDARD, {"externalRoute": {"kind": "HTTPRoute", "httpRoute": {"parentRefs": [{"name": "a"}]}}}
)

COMBINATIONS: list[tuple[Values, str]] = [
    ({"scaling": {"maxReplicas": 2}}, "scaling.maxReplicas 2 with cache.accessModes"),
    ({"scaling": {"maxReplicas": 0}}, "scaling.maxReplicas 0 with cache.accessModes"),
    (
        {"scaling": {"maxReplicas": 2}, "cache": {"existingClaim": "theirs"}},
        "an existing claim's modes go into cache.accessModes",
    ),
    (
        {"cache": {"accessModes": ["ReadOnlyMany"], "existingClaim": "theirs"}},
        r"cache.accessModes \[ReadOnlyMany\]: the Jobs write",
    ),
    ({"deploymentStrategy": {"type": "Recreate"}}, "deploymentStrategy: only with .* Standard"),
    ({"terminationGracePeriodSeconds": 60}, "terminationGracePeriodSeconds 60: only with"),
    ({"terminationGracePeriodSeconds": 0}, "terminationGracePeriodSeconds 0: only with"),
    ({"deploymentMode": "Standard"}, "scaling.minReplicas 0: .* only with KEDA"),
    (
        {"deploymentMode": "Standard", "scaling": {"autoscalerClass": "hpa"}},
        "scaling.minReplicas 0: .* only with KEDA",
    ),
    (
        {"scaling": {"scaleToZeroPodRetentionPeriod": "1h1s"}},
        "scaleToZeroPodRetentionPeriod 1h1s: Knative takes at most 1h",
    ),
    ({"scaling": {"scaleToZeroPodRetentionPeriod": "61m"}}, "61m: Knative takes at most 1h"),
    ({"timeoutSeconds": 601}, "timeoutSeconds 601: Knative's own limit is 600"),
    ({"scaling": {"scaleMetric": "cpu"}}, "scaleMetric cpu: Knative scales on concurrency or rps"),
    (merged(STANDARD, {"scaling": {"scaleMetric": "rps"}}), "scaleMetric rps: .* cpu or memory"),
    (merged(STANDARD, {"scaling": {"targetUtilization": 70}}), "targetUtilization 70: only with"),
    ({"scaling": {"autoscalerClass": "hpa"}}, "autoscalerClass hpa: only with .* Standard"),
    ({"scaling": {"autoScaling": {"metrics": []}}}, "autoScaling: only with .* Standard"),
    (
        merged(STANDARD, {"scaling": {"autoScaling": {"metrics": [{"type": "External"}]}}}),
        "metrics of other types than Resource need scaling.autoscalerClass keda",
    ),
    (
        merged(STANDARD, {"scaling": {"autoscalerClass": "keda"}}),
        "keda needs .*autoScaling.metrics",
    ),
    (
        {
            "deploymentMode": "Standard",
            "scaling": {
                "autoscalerClass": "keda",
                "autoScaling": {"metrics": [{"type": "Resource"}]},
            },
        },
        "scaling.minReplicas 0 with KEDA needs a metric that is not of type Resource",
    ),
    (
        merged(
            STANDARD,
            {
                "scaling": {
                    "autoscalerClass": "keda",
                    "scaleMetric": "cpu",
                    "autoScaling": {"metrics": [{"type": "Resource"}]},
                }
            },
        ),
        "scaleMetric cpu: with autoscalerClass keda, set the metrics in scaling.autoScaling",
    ),
    (merged(STANDARD, {"scaling": {"scaleMetric": "memory"}}), "memory needs scaling.scaleTarget"),
    (merged(STANDARD, {"scaling": {"scaleTarget": 101}}), "scaleTarget 101: percent"),
    (
        merged(STANDARD, MANY, {"scaling": {"maxReplicas": 0}}),
        "scaling.maxReplicas 0 means no limit only with deploymentMode Knative",
    ),
    ({"benchmark": {"batchSize": 1}}, "benchmark.batchSize 1 beside a service with .*Once"),
    ({"annotations": {"serving.kserve.io/deploymentMode": "x"}}, "set deploymentMode instead"),
    (
        {"annotations": {"autoscaling.knative.dev/scale-to-zero-pod-retention-period": "2h"}},
        "set scaling.scaleToZeroPodRetentionPeriod instead",
    ),
    (
        {"podAnnotations": {"serving.knative.dev/progress-deadline": "9m"}},
        "podAnnotations serving.knative.dev/progress-deadline: set progressDeadline instead",
    ),
    *(
        ({"podLabels": {key: "x"}}, f"podLabels {key}: KServe or the chart sets it")
        for key in ("app", "serving.kserve.io/inferenceservice", "app.kubernetes.io/component")
    ),
    ({"lifecycle": {"preStop": {}}}, "lifecycle: only with .* Standard; Knative takes no hooks"),
    (
        merged(STANDARD, {"lifecycle": {"preStop": {"sleep": {"seconds": 60}}}}),
        "lifecycle.preStop.sleep.seconds: shorter than the 60 s of terminationGracePeriodSeconds",
    ),
    *(
        (
            merged(STANDARD, {"canaryTrafficPercent": percent}),
            f"canaryTrafficPercent {percent}: only with deploymentMode Knative; KServe ignores",
        )
        for percent in (0, 20)
    ),
    ({"extraEnv": [{"name": "PORT", "value": "1"}]}, "extraEnv PORT: Knative sets it"),
    ({"extraVolumes": [{"name": "ca"}]}, "extraVolumes ca: Knative refuses"),
    (
        {"download": {"enabled": False}, "model": {"revision": "abc"}},
        "model.revision abc with download.enabled false",
    ),
    (
        {"download": {"enabled": False, "verify": "2026-11-25"}},
        "download.verify 2026-11-25 with download.enabled false",
    ),
    ({"drainDelaySeconds": 300}, "drainDelaySeconds 300: less than the 300 s of timeoutSeconds"),
    (
        merged(STANDARD, {"drainDelaySeconds": 60}),
        "drainDelaySeconds 60: less than the 60 s of terminationGracePeriodSeconds",
    ),
    (
        merged(STANDARD, {"drainDelaySeconds": 2.5, "terminationGracePeriodSeconds": 2}),
        "drainDelaySeconds 2.5: less than the 2 s",
    ),
    ({"protocol": "grpc"}, "protocol grpc: only with .* Standard; Knative gives a container one"),
    (merged(GRPC, {"tls": {"existingSecret": "x"}}), "tls.existingSecret with protocol grpc"),
    (merged(HTTP_ROUTE, GRPC), "externalRoute.kind HTTPRoute with protocol grpc"),
    ({"tls": {"existingSecret": "x"}}, "tls.existingSecret: only with .* Standard; .*queue proxy"),
    ({"apiKeys": {"openMetrics": True}}, "apiKeys.openMetrics without apiKeys.existingSecret"),
    *(
        (
            {"externalRoute": {"kind": kind}},
            f"externalRoute.kind {kind}: only with .* Standard; Knative has an ingress of its own",
        )
        for kind in ("HTTPRoute", "Ingress")
    ),
    (
        merged(STANDARD, {"externalRoute": {"kind": "HTTPRoute"}}),
        "externalRoute.kind HTTPRoute needs externalRoute.httpRoute.parentRefs",
    ),
    (
        merged(HTTP_ROUTE, {"externalRoute": {"ingress": {"className": "nginx"}}}),
        "externalRoute.ingress with externalRoute.kind HTTPRoute: there is no Ingress",
    ),
    (merged(HTTP_ROUTE, {"timeoutSeconds": 100_000}), "timeoutSeconds 100000 .* at most 99999"),
    (
        merged(HTTP_ROUTE, {"externalRoute": {"httpRoute": {"inferencePool": "a"}}}),
        "externalRoute.httpRoute.inferencePool needs metrics.compat vllm",
    ),
    (
        merged(
            HTTP_ROUTE,
            {"externalRoute": {"httpRoute": {"inferencePool": "a"}}, "metrics": {"compat": "vllm"}},
            {"apiKeys": {"existingSecret": "x"}},
        ),
        "inferencePool with apiKeys.existingSecret: .* set apiKeys.openMetrics true",
    ),
    (
        merged(STANDARD, {"externalRoute": {"kind": "Ingress"}}),
        "externalRoute.kind Ingress needs externalRoute.hostnames",
    ),
    (
        merged(HTTP_ROUTE, {"externalRoute": {"kind": "Ingress", "hostnames": ["a.b"]}}),
        "externalRoute.httpRoute with externalRoute.kind Ingress: there is no HTTPRoute",
    ),
    (
        {"apiKeys": {"existingSecret": "x"}, "podMonitor": {"enabled": True}},
        "podMonitor.enabled with apiKeys.existingSecret: .* set apiKeys.openMetrics true",
    ),
    (
        {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}},
        "podMonitor.enabled with serviceMonitor.enabled: .* twice",
    ),
    (
        {"apiKeys": {"existingSecret": "x"}, "serviceMonitor": {"enabled": True}},
        "serviceMonitor.enabled with apiKeys.existingSecret: .* set apiKeys.openMetrics true",
    ),
    (
        {"networkPolicy": {"tracesTo": [{"podSelector": {}}]}},
        "networkPolicy.tracesTo without tracing.endpoint",
    ),
    (
        {
            "tracing": {"endpoint": "http://collector:4318"},
            "extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "x"}],
        },
        "extraEnv OTEL_SERVICE_NAME: the values of tracing set it",
    ),
    (KEDA, "scaling.keda.enabled: only with deploymentMode Standard"),
    (
        merged(STANDARD, {"scaling": {"keda": {"enabled": True}}}),
        "needs scaling.keda.serverAddress",
    ),
    (
        merged(STANDARD, KEDA, {"scaling": {"autoscalerClass": "keda"}}),
        "scaling.autoscalerClass keda with scaling.keda.enabled: two autoscalers",
    ),
    (
        merged(STANDARD, KEDA, {"scaling": {"scaleMetric": "cpu", "scaleTarget": 80}}),
        "scaleMetric and scaleTarget are KServe's",
    ),
    (
        merged({"deploymentMode": "Standard"}, KEDA),
        "scaling.minReplicas 0 with scaling.keda.enabled: the replicas count",
    ),
    (
        merged(STANDARD, KEDA, {"scaling": {"keda": {"fallback": {"replicas": 2}}}}),
        "scaling.keda.fallback.replicas 2: not from scaling.minReplicas 1 to scaling.maxReplicas 1",
    ),
    ({"progressDeadline": "119s"}, "progressDeadline 119s: at least 2m"),
    (merged(STANDARD, {"progressDeadline": "0s"}), "progressDeadline 0s: at least 2m"),
    (
        {
            "download": {"hfToken": {"existingSecret": "hub"}},
            "extraEnv": [{"name": "HF_TOKEN", "valueFrom": {}}],
        },
        "extraEnv HF_TOKEN: download.hfToken.existingSecret sets it",
    ),
    *(
        ({"extraEnv": [{"name": name, "value": "x"}]}, f"extraEnv {name}: a secret's value")
        for name in ("AWS_SECRET_ACCESS_KEY", "MY_KEY", "hf_token", "DB_PASSWORD")
    ),
    (
        merged(MANY, {"scaling": {"minReplicas": 3, "maxReplicas": 2}}),
        "scaling.minReplicas 3 is above scaling.maxReplicas 2",
    ),
    ({"extraEnv": [{"name": "PYTHONPATH", "value": "/x"}]}, "extraEnv PYTHONPATH"),
    ({"extraEnv": [{"name": "STORAGE_URI", "value": "s3://x"}]}, "extraEnv STORAGE_URI"),
    ({"extraEnv": [{"name": "HF_TOKEN", "value": "hf_x"}]}, "extraEnv HF_TOKEN: a secret's value"),
    (
        {"probes": {"startup": {"failureThreshold": 361}}},
        "progressDeadline 30m is shorter than the 1805 s",
    ),
    (
        {"model": {"defaults": {"min_length": 9, "max_length": 8}}},
        "model.defaults.min_length 9 is above model.defaults.max_length 8",
    ),
    ({"benchmark": {"only": True}}, "benchmark.only true with benchmark.batchSize 0"),
    ({"fullnameOverride": "Demo"}, 'name "Demo"'),
    ({"fullnameOverride": "demo-"}, 'name "demo-"'),
    ({"fullnameOverride": "de.mo"}, 'name "de.mo"'),
    ({"fullnameOverride": "a" * 54}, "has 54 characters: at most 53"),
]

#: Like those above, and allowed.
ALLOWED: list[Values] = [
    merged(MANY, {"scaling": {"maxReplicas": 2}}),
    merged(MANY, {"scaling": {"maxReplicas": 0, "minReplicas": 9}}),
    {"scaling": {"maxReplicas": 2}, "allow": {"sharedReadWriteOnce": True}},
    {
        "scaling": {"maxReplicas": 2},
        "cache": {"accessModes": ["ReadOnlyMany"], "existingClaim": "theirs"},
        "download": {"enabled": False},
    },
    merged(STANDARD, {"deploymentStrategy": {"type": "RollingUpdate"}}),
    merged(STANDARD, {"terminationGracePeriodSeconds": 60, "timeoutSeconds": 900}),
    {
        "deploymentMode": "Standard",
        "scaling": {
            "autoscalerClass": "keda",
            "autoScaling": {"metrics": [{"type": "Resource"}, {"type": "External"}]},
        },
    },
    merged(STANDARD, {"scaling": {"autoScaling": {"metrics": [{"type": "Resource"}]}}}),
    {"benchmark": {"batchSize": 1}, "allow": {"sharedReadWriteOnce": True}},
    merged(MANY, {"benchmark": {"batchSize": 1}}),
    {"extraEnv": [{"name": "GPTJ_MAX_PREFILL_TOKENS", "value": "1024"}]},
    {"extraEnv": [{"name": "MY_TOKEN", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]},
    merged(STANDARD, {"extraEnv": [{"name": "PORT", "value": "1"}]}),
    {"securityContext": None, "podSecurityContext": None},
    {"annotations": {"serving.kserve.io/stop": "true"}},
    {"scaling": {"scaleToZeroPodRetentionPeriod": "1h"}},
    {"scaling": {"scaleToZeroPodRetentionPeriod": ""}},
    {"timeoutSeconds": 601, "allow": {"longTimeout": True}},
    {"scaling": {"scaleMetric": "rps"}},
    merged(
        STANDARD, MANY, {"scaling": {"scaleMetric": "memory", "scaleTarget": 900, "maxReplicas": 2}}
    ),
    {"probes": {"startup": {"failureThreshold": 360}}},
    {"extraEnv": [{"name": "PYTHONUNBUFFERED", "value": "1"}]},
    {"benchmark": {"only": True, "batchSize": 1}, "deploymentMode": "Standard"},
    merged(STANDARD, {"drainDelaySeconds": 59}),
    merged(STANDARD, {"drainDelaySeconds": 0, "terminationGracePeriodSeconds": 0}),
    merged(STANDARD, {"terminationGracePeriodSeconds": 1}),
    {"timeoutSeconds": 1},
    {"drainDelaySeconds": 5},
    {"apiKeys": {"existingSecret": "x"}},
    merged(STANDARD, {"tls": {"existingSecret": "x"}, "podMonitor": {"enabled": True}}),
    {
        "apiKeys": {"existingSecret": "x", "openMetrics": True},
        "serviceMonitor": {"enabled": True},
    },
    merged(STANDARD, KEDA, {"scaling": {"autoscalerClass": "external"}}),
    merged({"deploymentMode": "Standard"}, KEDA, {"scaling": {"keda": {"query": "sum(a)"}}}),
    {"extraEnv": [{"name": "OTEL_SERVICE_NAME", "value": "x"}]},
    {"fullnameOverride": "a" * 53},
    {"podAnnotations": {"autoscaling.knative.dev/scale-down-delay": "5m"}},
    merged(STANDARD, {"lifecycle": {"postStart": {"exec": {"command": ["true"]}}}}),
    {"canaryTrafficPercent": 0},
    merged(HTTP_ROUTE, {"timeoutSeconds": 99_999}),
    merged(STANDARD, {"timeoutSeconds": 100_000}),
    {"externalRoute": {"kind": "Ingress"}, "benchmark": {"only": True, "batchSize": 1}},
]

BAD: list[tuple[str, object]] = [
    ("modle", {}),
    ("model.Id", "a/b"),
    ("model.id", "a/b/c"),
    ("model.id", ""),
    ("model.revision", "-x"),
    ("model.precision", "int8"),
    ("model.quantization", "int4"),
    ("model.quantization", True),
    ("model.defaults.topk", 4),
    ("model.defaults.top_k", 2.5),
    ("model.defaults.top_k", "50"),
    ("model.defaults.top_k", -1),
    ("model.defaults.top_p", 0),
    ("model.defaults.top_p", 1.1),
    ("model.defaults.temperature", 0.001),
    ("model.defaults.temperature", 6),
    ("model.defaults.repetition_penalty", 0),
    ("model.defaults.max_length", 0),
    ("model.defaults.max_length", 2049),
    ("gpu.count", -1),
    ("gpu.count", "1"),
    ("gpu.labelValues", "A40"),
    ("gpu.labelKey", "a b"),
    ("scaling.minReplicas", -1),
    ("scaling.scaleMetric", "gpu"),
    ("scaling.scaleToZeroPodRetentionPeriod", "10 minutes"),
    ("scaling.scaleToZeroPodRetentionPeriod", 600),
    ("scaling.autoscalerClass", "kpa"),
    ("scaling.targetUtilization", 101),
    ("cache.size", "40 GB"),
    ("cache.size", "40ki"),
    ("scaling.containerConcurrency", 1001),
    ("model.name", ".."),
    *(
        (path, None)
        for path in (
            "affinity",
            "extraEnv",
            "extraArgs",
            "labels",
            "annotations",
            "gpu.labelValues",
            "region",
            "podMonitor",
            "serviceAccount",
            "probes",
            "probes.readiness",
            "resources",
            "progressDeadline",
            "timeoutSeconds",
            "scaling.minReplicas",
            "scaling.maxReplicas",
            "scaling.scaleToZeroPodRetentionPeriod",
            "cache.accessModes",
            "image.pullPolicy",
        )
    ),
    ("cache.accessModes", []),
    ("cache.accessModes", ["ReadWriteOncePod"]),
    ("cache.mountVia", "init"),
    ("cache.subPath", "/a"),
    ("cache.subPath", "../a"),
    ("cache.existingClaim", "My Claim"),
    ("download.enabled", "yes"),
    ("download.hfToken.value", "hf_x"),
    ("download.backoffLimit", -1),
    ("benchmark.batchSize", "8"),
    ("deploymentMode", "Serverless"),
    ("deploymentMode", "RawDeployment"),
    ("timeoutSeconds", 0),
    ("progressDeadline", ""),
    ("progressDeadline", "30"),
    ("probes.startup.periodSeconds", 0),
    ("probes.readiness.path", "/"),
    ("resources.limits", {"cpu": None}),
    ("resources.requests.memory", "16 GB"),
    ("resources.requests", None),
    ("shm", "much"),
    ("image.digest", "latest"),
    ("image.pullPolicy", "Sometimes"),
    ("imagePullSecrets", ["registry"]),
    ("labels", {"a": 1}),
    ("extraEnv", [{"value": "b"}]),
    ("extraEnv", {"A": "b"}),
    ("extraEnv", [{"name": "A", "value": 1}]),
    ("extraArgs", "--max_batch_size 8"),
    ("extraArgs", [{}]),
    ("tolerations", {}),
    ("podDisruptionBudget.maxUnavailable", "half"),
    ("allow.everything", True),
    ("drainDelaySeconds", -1),
    ("queue.maxRequests", 0),
    ("queue.maxTokens", "9000"),
    ("podLabels", {"a": "b c"}),
    ("podLabels", {"a b": "c"}),
    ("podLabels", {"a": "b" * 64}),
    ("podAnnotations", {"a": True}),
    ("canaryTrafficPercent", 101),
    ("canaryTrafficPercent", 2.5),
    ("lifecycle.preStart", {}),
    ("lifecycle", None),
    ("serviceAccount.automount", "no"),
    ("envFrom", [{"name": "a"}]),
    ("envFrom", [{"secretRef": {}}]),
    ("envFrom", [{"secretRef": {"name": "a"}, "configMapRef": {"name": "a"}}]),
    ("trustedProxies", "10.0.0.0/8"),
    ("trustedProxies", ["*"]),
    ("trustedProxies", ["ingress.example.com"]),
    ("apiKeys.existingSecret", "My Secret"),
    ("apiKeys.key", ""),
    ("apiKeys.key", "a/b"),
    ("apiKeys.keys", ["secret"]),
    ("tls.existingSecret", None),
    ("externalRoute.kind", "Route"),
    ("externalRoute.hostnames", "a.example.com"),
    ("externalRoute.hostnames", ["*.example.com"]),
    ("externalRoute.hostnames", ["https://a.example.com"]),
    ("externalRoute.paths", []),
    ("externalRoute.paths", ["v1"]),
    ("externalRoute.paths", ["/v1/"]),
    ("externalRoute.httpRoute.scheme", "tcp"),
    ("externalRoute.httpRoute.parentRefs", ["public"]),
    ("externalRoute.httpRoute.parentRefs", [{"namespace": "gateways"}]),
    ("externalRoute.ingress.tls", [{"secret": "a"}]),
    ("tracing.endpoint", "collector:4318"),
    ("tracing.endpoint", "http://user:password@collector:4318"),
    ("tracing.protocol", "http/json"),
    ("tracing.samplingRatio", 1.5),
    ("logFormat", "xml"),
    ("metrics.compat", "sglang"),
    ("serviceMonitor.interval", 30),
    ("serviceMonitor.labels", None),
    ("prometheusRule.labels", None),
    ("prometheusRule.thresholds.notReadyFor", "10 minutes"),
    ("prometheusRule.thresholds.waiting", -1),
    ("prometheusRule.thresholds.kvCache", 95),
    ("prometheusRule.thresholds.firstTokenSeconds", 0),
    ("prometheusRule.thresholds.errorRate", 1.1),
    ("prometheusRule.thresholds.restarts", 0.5),
    ("networkPolicy.tracesTo", {}),
    ("scaling.keda.enabled", "yes"),
    ("scaling.keda.serverAddress", "prometheus:9090"),
    ("scaling.keda.threshold", 0),
    ("scaling.keda.fallback.failureThreshold", 0),
    ("scaling.keda.fallback.behavior", "most"),
    ("scaling.keda.authenticationRef.kind", "Secret"),
]

GOOD: list[tuple[str, object]] = [
    ("model.defaults.temperature", 0),
    ("model.defaults.temperature", 0.01),
    ("model.defaults.top_k", 0),
    ("model.revision", "refs/pr/1"),
    ("model.revision", "0" * 40),
    ("model.id", "gpt2"),
    ("gpu.count", 8),
    ("cache.size", "1.5Ti"),
    ("cache.size", "50000000Ki"),
    ("cache.subPath", "models/gptj_6"),
    ("progressDeadline", "1h30m10s"),
    ("resources.limits.cpu", 8),
    ("resources.limits.ephemeral-storage", "1Gi"),
    ("shm", "64Mi"),
    ("podDisruptionBudget.maxUnavailable", "50%"),
    ("securityContext.runAsUser", 1000),
    ("podSecurityContext", {}),
    ("extraArgs", [8]),
    ("benchmark.extraArgs", ["--max_tokens", 256]),
    ("global", {"storageClass": "fast"}),
    ("canaryTrafficPercent", 100),
    ("podLabels", {"example.com/a": "", "a_b": "C.d-e"}),
    ("envFrom", [{"secretRef": {"name": "a", "optional": True}, "prefix": "A_"}]),
    ("trustedProxies", []),
    ("trustedProxies", ["10.0.0.0/8", "::1", "fd00::/8"]),
    ("tracing.endpoint", "https://[2001:db8::1]:4318/v1"),
    ("tracing.samplingRatio", 0),
    ("apiKeys.key", "api-keys.txt"),
    ("scaling.keda.threshold", 2.5),
    ("scaling.keda.behavior", None),
]


def shown(values: object) -> str:
    return re.sub(r"[^\w.=-]+", " ", str(values)).strip()[:60]


@pytest.mark.parametrize(("values", "words"), COMBINATIONS, ids=shown)
def test_combinations(values: Values, words: str) -> None:
    with pytest.raises(helm_python.HelmError) as refusal:
        render(values)
    assert re.search(words, str(refusal.value)), refusal.value
    assert "these values do not fit together" in str(refusal.value)
    # One mistake, one line.
    assert str(refusal.value).count("\n  - ") == 1, refusal.value


@pytest.mark.parametrize("values", ALLOWED, ids=shown)
def test_allowed(values: Values) -> None:
    assert render(values).objects


def test_release_name() -> None:
    with pytest.raises(helm_python.HelmError, match='name "2nd"'):
        render(name="2nd")
    assert render({"fullnameOverride": "second"}, name="2nd").has("InferenceService", "second")


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(helm_python.HelmError) as refusal:
        render({"scaling": {"maxReplicas": 2}, "timeoutSeconds": 601}, name="2nd")
    assert str(refusal.value).count("\n  - ") == 3


@pytest.mark.parametrize(("path", "value"), BAD, ids=shown)
def test_schema_refuses(path: str, value: object) -> None:
    with pytest.raises(helm_python.HelmValuesError) as refusal:
        render(nested(path, value))
    # The message leads to the value: its path, or the last name of it where the map is at fault.
    said = str(refusal.value).replace("/", ".")
    assert path in said or path.rpartition(".")[2] in said, refusal.value


@pytest.mark.parametrize(("path", "value"), GOOD, ids=shown)
def test_schema_takes(path: str, value: object) -> None:
    assert render(nested(path, value)).objects
