{{- define "gptj.name" -}}
{{- .Values.fullnameOverride | default .Release.Name -}}
{{- end }}

{{- define "gptj.claim" -}}
{{- .Values.cache.existingClaim | default (printf "%s-models" (include "gptj.name" .)) -}}
{{- end }}

{{- define "gptj.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "gptj.name" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{/* The model's name in URLs. The server makes it from the id by the same rule. */}}
{{- define "gptj.modelName" -}}
{{- .Values.model.name | default (regexReplaceAll "[^a-z0-9_-]" (lower .Values.model.id) "-") -}}
{{- end }}

{{/*
The name of a Job. Call: dict "root" . "component" "pull" or "benchmark".

Kubernetes does not let the template of a Job change. So the name ends in a hash of the Job's spec:
a changed Job is a new Job.
*/}}
{{- define "gptj.jobName" -}}
{{- $hash := include (printf "gptj.%sJobSpec" .component) .root | sha256sum | trunc 8 -}}
{{- printf "%s-%s-%s" (include "gptj.name" .root | trunc 44 | trimSuffix "-") .component $hash -}}
{{- end }}
