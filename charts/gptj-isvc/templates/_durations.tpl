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

{{/*
Seconds from the signal that stops a replica until it is killed. Knative makes timeoutSeconds the
pod's own terminationGracePeriodSeconds.
*/}}
{{- define "gptj.gracePeriod" -}}
{{- if eq .Values.deploymentMode "Knative" -}}
{{- int .Values.timeoutSeconds -}}
{{- else -}}
{{- ternary 60 .Values.terminationGracePeriodSeconds (kindIs "invalid" .Values.terminationGracePeriodSeconds) | int -}}
{{- end -}}
{{- end }}

{{/*
What of that time the server has. A preStop hook runs before the signal; of its kinds only a sleep says
how long.
*/}}
{{- define "gptj.serverGracePeriod" -}}
{{- $hook := dig "preStop" "sleep" "seconds" 0 .Values.lifecycle | int -}}
{{- sub (include "gptj.gracePeriod" . | int) $hook -}}
{{- end }}

{{/*
Seconds after that signal in which new requests are still served. Knative's queue proxy sends the
signal on only after it has drained.
*/}}
{{- define "gptj.drainDelay" -}}
{{- if not (kindIs "invalid" .Values.drainDelaySeconds) -}}
{{- .Values.drainDelaySeconds -}}
{{- else if eq .Values.deploymentMode "Knative" -}}
0
{{- else -}}
{{- max 0 (min 10 (div (include "gptj.serverGracePeriod" . | int) 2)) -}}
{{- end -}}
{{- end }}
