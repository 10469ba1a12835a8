{{/* Metrics: how they are scraped and what is asked of them. */}}

{{/* The labels that Prometheus gives what it scrapes of this release's replicas, for a query's braces. */}}
{{- define "gptj.metricSelector" -}}
namespace={{ .Release.Namespace | quote }},pod=~"{{ include "gptj.name" . }}-predictor-.*"
{{- end }}

{{- define "gptj.metricsArgs" -}}
{{- ternary list (list "--metrics_compat" .Values.metrics.compat) (eq .Values.metrics.compat "none") | toJson -}}
{{- end }}

{{- define "gptj.validate.monitoring" -}}
{{- $problems := list -}}
{{- if and .Values.podMonitor.enabled .Values.serviceMonitor.enabled -}}
{{- $problems = append $problems "podMonitor.enabled with serviceMonitor.enabled: Prometheus would count every request twice; use one of them" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.apiKeys.existingSecret (not .Values.apiKeys.openMetrics) -}}
{{- $problems = append $problems "serviceMonitor.enabled with apiKeys.existingSecret: Prometheus sends no API key; set apiKeys.openMetrics true" -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}
