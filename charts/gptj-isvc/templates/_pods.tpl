{{/* Fields that all pods have in common. */}}
{{- define "gptj.podCommon" -}}
serviceAccountName: {{ include "gptj.serviceAccount" . | quote }}
# Variables of Services in the namespace could have names that the server takes for its own.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Where a pod may run, or nothing. Call: dict "root" . "gpu" BOOL, whether the pod requests GPUs.

All pods get the same constraints, because a volume may be created where its first pod runs. Many
clusters taint their GPU nodes, and add the toleration only to pods that request a GPU. So a pod that
requests none gets the toleration here.
*/}}
{{- define "gptj.podPlacement" -}}
{{- $values := .root.Values -}}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "gptj.affinity" . }}
affinity:
  {{- . | nindent 2 }}
{{- end }}
{{- $tolerations := $values.tolerations -}}
{{- if and $values.gpu.count (not .gpu) -}}
{{- $tolerations = append $tolerations (dict "key" $values.gpu.resource "operator" "Exists") -}}
{{- end -}}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}
