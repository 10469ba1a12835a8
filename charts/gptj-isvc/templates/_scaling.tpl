{{/*
KServe's class of autoscaler, or nothing for KServe's default. With "external" KServe makes none and
leaves the number of replicas alone.
*/}}
{{- define "gptj.autoscalerClass" -}}
{{- with .Values.scaling -}}
{{- if .keda.enabled -}}
external
{{- else -}}
{{- .autoscalerClass | default (ternary "none" "" (eq (int .minReplicas) (int .maxReplicas))) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What KEDA asks Prometheus: the sequences that wait or run in all replicas together. */}}
{{- define "gptj.kedaQuery" -}}
{{- if .Values.scaling.keda.query -}}
{{- .Values.scaling.keda.query -}}
{{- else -}}
{{- $pods := printf "{namespace=%q,pod=~\"%s-predictor-.*\"}" .Release.Namespace (include "gptj.name" .) -}}
{{- printf "sum(gptj_requests_waiting%s) + sum(gptj_requests_running%s)" $pods $pods -}}
{{- end -}}
{{- end }}
