"""Values to render the chart with."""

from __future__ import annotations

import itertools

from tests.support.charts import EXAMPLES, Values, example_values, merged

MODES: dict[str, Values] = {
    "knative": {"deploymentMode": "Knative"},
    "standard": {"deploymentMode": "Standard", "scaling": {"minReplicas": 1}},
}
GRPC: Values = merged(MODES["standard"], {"protocol": "grpc"})
MOUNTS: dict[str, Values] = {
    "storageUri": {},
    "volume": {"cache": {"mountVia": "volume"}},
    "volume, written": {"cache": {"mountVia": "volume", "readOnly": False, "subPath": "a/b"}},
}
CACHES: dict[str, Values] = {
    "own": {},
    "own, given up": {"cache": {"keep": False, "storageClassName": "fast"}},
    "existing": {"cache": {"existingClaim": "theirs", "subPath": "gptj"}},
    "no download": {"cache": {"existingClaim": "theirs"}, "download": {"enabled": False}},
}
BENCHMARKS: dict[str, Values] = {
    "none": {},
    "beside": {
        "benchmark": {"batchSize": 8, "warmupRounds": 2, "ttl": 600},
        "allow": {"sharedReadWriteOnce": True},
    },
    "only": {"benchmark": {"batchSize": 2, "only": True}},
}
SCALINGS: dict[str, Values] = {
    "default": {},
    "four": {
        "scaling": {"maxReplicas": 4, "scaleTarget": 9},
        "cache": {"accessModes": ["ReadWriteMany"]},
    },
}

MANY: Values = {"cache": {"accessModes": ["ReadWriteMany"]}}

#: Everything that is off by default, and every list and map with something in it.
EVERYTHING: Values = {
    "gpu": {"count": 2, "labelValues": ["A40", "A100"]},
    "region": {"values": ["ORD1"]},
    "model": {
        "name": "gptj",
        "defaults": {
            "min_length": 5,
            "max_length": 100,
            "temperature": 0.5,
            "top_k": 40,
            "top_p": 0.95,
            "repetition_penalty": 1.1,
        },
    },
    "download": {"hfToken": {"existingSecret": "hub"}, "ttl": 60, "verify": "2026-11-25"},
    "benchmark": {"batchSize": 2, "extraArgs": ["--rounds", "2"]},
    "cache": {"accessModes": ["ReadWriteMany"], "annotations": {"argocd/prune": "no"}},
    "shm": "1Gi",
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "labels": {"team": "nlp", "app.kubernetes.io/name": "other"},
    "annotations": {"example.com/a": "b", "serving.kserve.io/stop": "true"},
    "nodeSelector": {"disk": "ssd"},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "Exists"}]},
                    {
                        "matchFields": [
                            {"key": "metadata.name", "operator": "In", "values": ["node"]}
                        ]
                    },
                ]
            }
        }
    },
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "podLabels": {"pool": "texts"},
    "podAnnotations": {"sidecar.istio.io/inject": "true"},
    "serviceAccount": {"annotations": {"cloud/role": "reader"}, "automount": True},
    "queue": {"maxRequests": 64, "maxTokens": 9000},
    "trustedProxies": ["192.0.2.1", "2001:db8::/32"],
    "apiKeys": {"existingSecret": "keys", "openMetrics": True},
    "tracing": {
        "endpoint": "http://collector.monitoring:4318",
        "serviceName": "texts",
        "samplingRatio": 0.25,
    },
    "logFormat": "json",
    "extraEnv": [
        {"name": "HF_ENDPOINT", "value": "http://hub"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ],
    "envFrom": [{"secretRef": {"name": "proxy"}}, {"prefix": "A_", "configMapRef": {"name": "a"}}],
    "extraArgs": ["--max_batch_size", "64"],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
    "extraObjects": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "{{ .Release.Name }}-extra"},
            "data": {"a": "b"},
        }
    ],
    "podMonitor": {"enabled": True, "labels": {"team": "ops"}},
    "metrics": {"compat": "vllm"},
    "prometheusRule": {"enabled": True, "labels": {"team": "ops"}},
    "dashboard": {"enabled": True},
    "networkPolicy": {
        "enabled": True,
        "from": [{"podSelector": {}}],
        "tracesTo": [{"namespaceSelector": {}}],
    },
    "podDisruptionBudget": {"enabled": True},
}

#: What only one of the modes has.
OF_MODE: dict[str, Values] = {
    "knative": {"canaryTrafficPercent": 20},
    "standard": {
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "tls": {"existingSecret": "certificate"},
        "externalRoute": {
            "kind": "HTTPRoute",
            "hostnames": ["texts.example.com"],
            "paths": ["/v1", "/v2"],
            "annotations": {"example.com/a": "b"},
            "httpRoute": {
                "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}],
                "inferencePool": "texts",
            },
        },
        "scaling": {"keda": {"enabled": True, "serverAddress": "http://prometheus:9090"}},
    },
}

#: Instead of the PodMonitor.
SERVICE_MONITOR: Values = {
    "podMonitor": {"enabled": False},
    "serviceMonitor": {"enabled": True, "labels": {"team": "ops"}},
}

#: Instead of the HTTPRoute.
INGRESS: Values = {
    "externalRoute": {
        "kind": "Ingress",
        "httpRoute": {"parentRefs": [], "inferencePool": ""},
        "ingress": {
            "className": "nginx",
            "tls": [{"secretName": "texts", "hosts": ["texts.example.com"]}],
        },
    },
}

#: Every combination of the above, the examples, and everything at once in each mode.
MATRIX = {
    ", ".join(names): merged(*values)
    for names, values in (
        (tuple(name for name, _ in row), tuple(value for _, value in row))
        for row in itertools.product(
            MODES.items(), MOUNTS.items(), CACHES.items(), BENCHMARKS.items(), SCALINGS.items()
        )
    )
}
MATRIX |= {f"example {name}": example_values(name) for name in EXAMPLES}
MATRIX |= {
    f"everything, {name}": merged(EVERYTHING, mode, OF_MODE[name]) for name, mode in MODES.items()
}
MATRIX |= {
    f"everything, service monitor, {name}": merged(MATRIX[f"everything, {name}"], SERVICE_MONITOR)
    for name in MODES
}
MATRIX["everything, gRPC"] = merged(
    EVERYTHING, GRPC, {"lifecycle": {"preStop": {"sleep": {"seconds": 5}}}}
)
MATRIX["everything, ingress, standard"] = merged(MATRIX["everything, standard"], INGRESS)
