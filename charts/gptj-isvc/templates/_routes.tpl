{{/* The way from outside to the predictor. */}}

{{/* Kind of the route, or nothing. */}}
{{- define "gptj.route" -}}
{{- if and (ne .Values.externalRoute.kind "none") (not .Values.benchmark.only) -}}
{{- .Values.externalRoute.kind -}}
{{- end -}}
{{- end }}

{{/* KServe has objects of the bare name in these kinds. */}}
{{- define "gptj.routeName" -}}
{{- include "gptj.name" . }}-external
{{- end }}

{{/*
Time limit of the route, a duration of the Gateway API. The server answers 5 s before it, whatever it
has. Without one a gateway has its own: Envoy 15 s.
*/}}
{{- define "gptj.routeTimeout" -}}
{{- printf "%ds" (int .Values.timeoutSeconds) -}}
{{- end }}

{{/*
The address that callers use, for a shell. A Gateway that takes any host is asked for its own. Nothing
without a route.
*/}}
{{- define "gptj.routeUrl" -}}
{{- $route := .Values.externalRoute -}}
{{- $kind := include "gptj.route" . -}}
{{- if eq $kind "Ingress" -}}
{{- ternary "https" "http" (gt (len $route.ingress.tls) 0) }}://{{ first $route.hostnames }}
{{- else if eq $kind "HTTPRoute" -}}
{{- $gateway := first $route.httpRoute.parentRefs | default dict -}}
{{- $address := printf "$(kubectl get gateway %s -n %s -o jsonpath='{.status.addresses[0].value}')" $gateway.name ($gateway.namespace | default .Release.Namespace) -}}
{{- $route.httpRoute.scheme }}://{{ first $route.hostnames | default $address }}{{ with $gateway.port }}:{{ . }}{{ end }}
{{- end -}}
{{- end }}

{{- define "gptj.validate.route" -}}
{{- $problems := list -}}
{{- $route := .Values.externalRoute -}}
{{- $kind := include "gptj.route" . -}}
{{- if and $kind (eq .Values.protocol "grpc") -}}
{{- $problems = append $problems (printf "externalRoute.kind %s with protocol grpc: the chart's routes are for HTTP; put a GRPCRoute, or an Ingress with your controller's annotations, into extraObjects" $kind) -}}
{{- end -}}
{{- if and $kind (eq .Values.deploymentMode "Knative") -}}
{{- $problems = append $problems (printf "externalRoute.kind %s: only with deploymentMode Standard; Knative has an ingress of its own, whose address is the InferenceService's status.url" $kind) -}}
{{- else if eq $kind "HTTPRoute" -}}
{{- if not $route.httpRoute.parentRefs -}}
{{- $problems = append $problems "externalRoute.kind HTTPRoute needs externalRoute.httpRoute.parentRefs: the Gateway that takes the route" -}}
{{- end -}}
{{- if or $route.ingress.className $route.ingress.tls -}}
{{- $problems = append $problems "externalRoute.ingress with externalRoute.kind HTTPRoute: there is no Ingress; HTTPS ends at the Gateway's listener" -}}
{{- end -}}
{{- if gt (int .Values.timeoutSeconds) 99999 -}}
{{- $problems = append $problems (printf "timeoutSeconds %d with externalRoute.kind HTTPRoute: the Gateway API takes at most 99999" (int .Values.timeoutSeconds)) -}}
{{- end -}}
{{- if and $route.httpRoute.inferencePool (ne .Values.metrics.compat "vllm") -}}
{{- $problems = append $problems "externalRoute.httpRoute.inferencePool needs metrics.compat vllm: endpoint pickers read vLLM's metrics" -}}
{{- end -}}
{{- if and $route.httpRoute.inferencePool .Values.apiKeys.existingSecret (not .Values.apiKeys.openMetrics) -}}
{{- $problems = append $problems "externalRoute.httpRoute.inferencePool with apiKeys.existingSecret: the endpoint picker sends no API key; set apiKeys.openMetrics true" -}}
{{- end -}}
{{- else if eq $kind "Ingress" -}}
{{- if not $route.hostnames -}}
{{- $problems = append $problems "externalRoute.kind Ingress needs externalRoute.hostnames: without one it would take the requests of all hosts" -}}
{{- end -}}
{{- if or $route.httpRoute.parentRefs $route.httpRoute.inferencePool -}}
{{- $problems = append $problems "externalRoute.httpRoute with externalRoute.kind Ingress: there is no HTTPRoute" -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}
