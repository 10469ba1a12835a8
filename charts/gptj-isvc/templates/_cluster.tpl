{{/*
What the cluster lacks for these values, a JSON list of problems. Call: dict "root" . "has" LIST of API
versions, as in .Capabilities.APIVersions.

Helm fills that list from the cluster when it talks to one, with groups ("batch/v1") and kinds
("v1/Pod"). Without a cluster it has groups of Kubernetes' own and no kinds, and nothing is known.
*/}}
{{- define "gptj.missing" -}}
{{- $problems := list -}}
{{- $values := .root.Values -}}
{{- if has "v1/Pod" .has -}}
{{- if not $values.benchmark.only -}}
{{- if not (has "serving.kserve.io/v1beta1" .has) -}}
{{- $problems = append $problems "the cluster has no KServe (serving.kserve.io/v1beta1): install KServe 0.16 or newer, https://kserve.github.io/website/" -}}
{{- end -}}
{{- if and (eq $values.deploymentMode "Knative") (not (has "serving.knative.dev/v1" .has)) -}}
{{- $problems = append $problems "deploymentMode Knative, and the cluster has no Knative Serving (serving.knative.dev/v1): install Knative Serving 1.15 or newer, or set deploymentMode Standard and scaling.minReplicas 1" -}}
{{- end -}}
{{- if and $values.scaling.keda.enabled (not (has "keda.sh/v1alpha1" .has)) -}}
{{- $problems = append $problems "scaling.keda.enabled, and the cluster has no KEDA (keda.sh/v1alpha1): install KEDA, or set scaling.keda.enabled false" -}}
{{- end -}}
{{- end -}}
{{- if and (eq (include "gptj.route" .root) "HTTPRoute") (not (has "gateway.networking.k8s.io/v1" .has)) -}}
{{- $problems = append $problems "externalRoute.kind HTTPRoute, and the cluster has no Gateway API (gateway.networking.k8s.io/v1): install it with a gateway, https://gateway-api.sigs.k8s.io/, or set externalRoute.kind Ingress" -}}
{{- end -}}
{{- if and (eq (include "gptj.route" .root) "HTTPRoute") $values.externalRoute.httpRoute.inferencePool (not (has "inference.networking.k8s.io/v1" .has)) -}}
{{- $problems = append $problems "externalRoute.httpRoute.inferencePool, and the cluster has no InferencePool (inference.networking.k8s.io/v1): install the Gateway API Inference Extension, https://gateway-api-inference-extension.sigs.k8s.io/, or leave the value empty" -}}
{{- end -}}
{{- if not (has "monitoring.coreos.com/v1" .has) -}}
{{- range $name := list "podMonitor" "serviceMonitor" "prometheusRule" -}}
{{- if (index $values $name).enabled -}}
{{- $problems = append $problems (printf "%s.enabled, and the cluster has no Prometheus operator (monitoring.coreos.com/v1): install it, or set %s.enabled false" $name $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}
