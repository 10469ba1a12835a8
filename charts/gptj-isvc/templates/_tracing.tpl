{{/* OpenTelemetry's own variables, a JSON list. Nothing without tracing.endpoint. */}}
{{- define "gptj.tracingEnv" -}}
{{- $env := list -}}
{{- with .Values.tracing -}}
{{- if .endpoint -}}
{{- $env = append $env (dict "name" "OTEL_EXPORTER_OTLP_ENDPOINT" "value" .endpoint) -}}
{{- $env = append $env (dict "name" "OTEL_EXPORTER_OTLP_PROTOCOL" "value" .protocol) -}}
{{- $env = append $env (dict "name" "OTEL_SERVICE_NAME" "value" (.serviceName | default (include "gptj.name" $))) -}}
{{- if not (kindIs "invalid" .samplingRatio) -}}
{{- $env = append $env (dict "name" "OTEL_TRACES_SAMPLER" "value" "parentbased_traceidratio") -}}
{{- $env = append $env (dict "name" "OTEL_TRACES_SAMPLER_ARG" "value" (toString .samplingRatio)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $env -}}
{{- end }}

{{/* The port of tracing.endpoint, or the one that its scheme stands for. */}}
{{- define "gptj.tracingPort" -}}
{{- $url := urlParse .Values.tracing.endpoint -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end }}
