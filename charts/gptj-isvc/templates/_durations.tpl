{{/* Seconds of a duration such as 1h, 30m or 1h30m15s. */}}
{{- define "gptj.seconds" -}}
{{- $hours := regexFind "[0-9]+h" . | trimSuffix "h" | int -}}
{{- $minutes := regexFind "[0-9]+m" . | trimSuffix "m" | int -}}
{{- $seconds := regexFind "[0-9]+s" . | trimSuffix "s" | int -}}
{{- add (mul $hours 3600) (mul $minutes 60) $seconds -}}
{{- end }}

{{/*
How many probes may fail while a replica starts. By default they end one minute before
progressDeadline.
*/}}
{{- define "gptj.startupFailures" -}}
{{- with .Values.probes.startup -}}
{{- if kindIs "invalid" .failureThreshold -}}
{{- max 1 (div (sub (include "gptj.seconds" $.Values.progressDeadline | int) 60) (int .periodSeconds)) -}}
{{- else -}}
{{- int .failureThreshold -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Maximum time in seconds that a replica may take to start. */}}
{{- define "gptj.startupSeconds" -}}
{{- mul (include "gptj.startupFailures" . | int) (int .Values.probes.startup.periodSeconds) -}}
{{- end }}
