{{/*
Labels that stay the same from one chart version to the next. Call: dict "root" . "component" NAME.
*/}}
{{- define "gptj.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/*
All labels of an object: those above, "more" if given, and .Values.labels.
Call: dict "root" . "component" NAME "more" MAP.
*/}}
{{- define "gptj.labels" -}}
{{ include "gptj.selectorLabels" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with omit (merge (dict) (.more | default dict) .root.Values.labels) "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/managed-by" }}
{{ toYaml . }}
{{- end }}
{{- end }}
