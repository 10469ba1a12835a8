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
Where the kubelet looks for the reason that a container ended. The program writes it to this file. If
the program could not, as when its memory ran out, the end of the log stands in. It has no prompts,
unless the server is told to log them.
*/}}
{{- define "gptj.termination" -}}
terminationMessagePath: /dev/termination-log
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/*
Where a pod may run, or nothing. Call: dict "root" . "gpu" BOOL, whether the pod requests GPUs,
"predictor" BOOL, whether it is the predictor's.

All pods get the same constraints, because a volume may be created where its first pod runs. Many
clusters taint their GPU nodes. Some add the toleration to pods that request a GPU, and many do not. So
every pod gets it here. Knative's predictor gets it only if asked for, because Knative takes it
behind a flag alone.
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
{{- $own := dict "key" $values.gpu.resource "operator" "Exists" -}}
{{- $behindFlag := and .predictor (eq $values.deploymentMode "Knative") -}}
{{- if and $values.gpu.count (or (not $behindFlag) $values.gpu.tolerateTaint) (not (has $own $tolerations)) -}}
{{- $tolerations = append $tolerations $own -}}
{{- end -}}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}
