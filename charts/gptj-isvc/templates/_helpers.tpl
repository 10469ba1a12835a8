{{/* Names */}}

{{- define "gptj.name" -}}
{{- .Values.fullnameOverride | default .Release.Name -}}
{{- end }}

{{- define "gptj.claim" -}}
{{- .Values.cache.existingClaim | default (printf "%s-models" (include "gptj.name" .)) -}}
{{- end }}

{{- define "gptj.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "gptj.name" .) "default" .Values.serviceAccount.create) -}}
{{- end }}

{{/* The model's name in URLs, made from its id as the server makes it. */}}
{{- define "gptj.modelName" -}}
{{- .Values.model.name | default (regexReplaceAll "[^a-z0-9_-]" (lower .Values.model.id) "-") -}}
{{- end }}

{{- define "gptj.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end }}

{{/*
Labels that stay the same from one chart version to the next. Call: dict "root" . "component" NAME.
*/}}
{{- define "gptj.selectorLabels" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Those of .Values.labels besides, and "more" if given. Call as gptj.selectorLabels. */}}
{{- define "gptj.labels" -}}
{{ include "gptj.selectorLabels" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with omit (merge (dict) (.more | default dict) .root.Values.labels) "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/managed-by" }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Quantities */}}

{{/* Seconds of a duration such as 1h, 30m or 1h30m15s. */}}
{{- define "gptj.seconds" -}}
{{- $hours := regexFind "[0-9]+h" . | trimSuffix "h" | int -}}
{{- $minutes := regexFind "[0-9]+m" . | trimSuffix "m" | int -}}
{{- $seconds := regexFind "[0-9]+s" . | trimSuffix "s" | int -}}
{{- add (mul $hours 3600) (mul $minutes 60) $seconds -}}
{{- end }}

{{/* Probes that may fail while a replica starts: up to a minute before the deadline. */}}
{{- define "gptj.startupFailures" -}}
{{- with .Values.probes.startup -}}
{{- if kindIs "invalid" .failureThreshold -}}
{{- max 1 (div (sub (include "gptj.seconds" $.Values.progressDeadline | int) 60) (int .periodSeconds)) -}}
{{- else -}}
{{- int .failureThreshold -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Seconds that a replica may take to start. */}}
{{- define "gptj.startupSeconds" -}}
{{- mul (include "gptj.startupFailures" . | int) (int .Values.probes.startup.periodSeconds) -}}
{{- end }}

{{/* Command lines, as JSON */}}

{{/*
The pull tags what it brought and the others wait for that tag, so that after an upgrade to another
revision or precision nobody serves what the volume held before.
*/}}
{{- define "gptj.tagArgs" -}}
{{- $revision := regexReplaceAll "[^A-Za-z0-9._-]" .Values.model.revision "-" -}}
{{- ternary (list "--tag" (printf "%s-%s" $revision (include "gptj.storedPrecision" .))) list .Values.download.enabled | toJson -}}
{{- end }}

{{- define "gptj.serveArgs" -}}
{{- $args := list "serve" "--model" .Values.model.id "--model_name" (include "gptj.modelName" .) "--precision" .Values.model.precision "--wait_for_snapshot" (include "gptj.startupSeconds" .) "--http_port" "8080" "--enable_grpc" "false" -}}
{{- $args = concat $args (include "gptj.tagArgs" . | fromJsonArray) -}}
{{- range $name, $value := .Values.model.defaults -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $args = concat $args (list (printf "--%s" $name) (toString $value)) -}}
{{- end -}}
{{- end -}}
{{- concat $args .Values.extraArgs | toJson -}}
{{- end }}

{{/*
The precision to pull. A Job without a GPU would take bfloat16 for "auto"; where only Volta and
Turing cards are asked for, which compute in fp16, that would lose precision twice.
*/}}
{{- define "gptj.storedPrecision" -}}
{{- $old := gt (len .Values.gpu.labelValues) 0 -}}
{{- range .Values.gpu.labelValues -}}
{{- $old = and $old (regexMatch "(?i)(v100|titan|quadro[-_ ]rtx|(^|[-_ ])t4($|[-_ ]))" .) -}}
{{- end -}}
{{- ternary "fp16" .Values.model.precision (and $old (eq .Values.model.precision "auto")) -}}
{{- end }}

{{- define "gptj.pullArgs" -}}
{{- $args := list "snapshot" "pull" .Values.model.id "--revision" .Values.model.revision "--precision" (include "gptj.storedPrecision" .) "--dest" "/mnt/models" -}}
{{- concat $args (include "gptj.tagArgs" . | fromJsonArray) | toJson -}}
{{- end }}

{{/*
A folder of its own for each set of settings and of machines, so that a Job's next pod, and only that,
goes on where the last one stopped.
*/}}
{{- define "gptj.benchmarkArgs" -}}
{{- $args := list "benchmark" "--model" .Values.model.id "--precision" .Values.model.precision "--wait_for_snapshot" (include "gptj.seconds" .Values.progressDeadline) "--batch-size" (toString .Values.benchmark.batchSize) "--warmup-rounds" (toString .Values.benchmark.warmupRounds) -}}
{{- $args = concat $args (include "gptj.tagArgs" . | fromJsonArray) .Values.benchmark.extraArgs -}}
{{- $machine := pick .Values "gpu" "region" "nodeSelector" "affinity" "extraEnv" -}}
{{- $run := list (include "gptj.image" .) $args .Values.benchmark.resources $machine | toJson | sha256sum | trunc 8 -}}
{{- concat $args (list "--output" (printf "/mnt/models/benchmarks/%s-%s" (include "gptj.name" .) $run) "--resume") | toJson -}}
{{- end }}

{{/* Pods */}}

{{/* Affinity with the GPU's and the region's labels in every term of the node affinity. */}}
{{- define "gptj.affinity" -}}
{{- $wanted := list -}}
{{- with .Values.gpu.labelValues -}}
{{- $wanted = append $wanted (dict "key" $.Values.gpu.labelKey "operator" "In" "values" .) -}}
{{- end -}}
{{- with .Values.region.values -}}
{{- $wanted = append $wanted (dict "key" $.Values.region.key "operator" "In" "values" .) -}}
{{- end -}}
{{- $affinity := deepCopy .Values.affinity -}}
{{- if $wanted -}}
{{- $node := $affinity.nodeAffinity | default dict -}}
{{- $required := $node.requiredDuringSchedulingIgnoredDuringExecution | default dict -}}
{{- $terms := list -}}
{{- range $required.nodeSelectorTerms | default (list dict) -}}
{{- $terms = append $terms (merge (dict "matchExpressions" (concat (.matchExpressions | default list) $wanted)) .) -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- if $affinity -}}{{ toYaml $affinity }}{{- end -}}
{{- end }}

{{/*
Where pods may run. Call: dict "root" . "visitor" BOOL.

The same for all, because a volume that waits for its first consumer is made where the first pod
lands. A visitor asks for no GPU, so it is given what comes with asking: clusters taint their GPU
nodes and let in who asks, and without a label's value to look for it prefers nodes that have one.
*/}}
{{- define "gptj.placement" -}}
{{- $values := .root.Values -}}
{{- $visitor := and .visitor (gt (int $values.gpu.count) 0) -}}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $affinity := include "gptj.affinity" .root | fromYaml -}}
{{- if and $visitor (not $values.gpu.labelValues) -}}
{{- $node := $affinity.nodeAffinity | default dict -}}
{{- $key := "preferredDuringSchedulingIgnoredDuringExecution" -}}
{{- $preference := dict "weight" 100 "preference" (dict "matchExpressions" (list (dict "key" $values.gpu.labelKey "operator" "Exists"))) -}}
{{- $_ := set $node $key (append (index $node $key | default list) $preference) -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $values.tolerations (ternary (list (dict "key" $values.gpu.resource "operator" "Exists")) list $visitor) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{/* What all pods have besides. */}}
{{- define "gptj.podCommon" -}}
serviceAccountName: {{ include "gptj.serviceAccount" . | quote }}
# Variables of Services in the namespace could have names that the server takes for its own.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Requests and limits with GPUs. Call: dict "root" . "resources" RESOURCES "gpu" BOOL. */}}
{{- define "gptj.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if and .gpu .root.Values.gpu.count -}}
{{- range $kind := list "requests" "limits" -}}
{{- $_ := set (index $resources $kind) $.root.Values.gpu.resource (toString $.root.Values.gpu.count) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}

{{/*
A Job's spec. Call: dict "root" . "component" NAME "args" JSON "settings" (resources, backoffLimit,
ttl) "gpu" BOOL "env" LIST.
*/}}
{{- define "gptj.jobSpec" -}}
{{- $values := .root.Values -}}
backoffLimit: {{ .settings.backoffLimit }}
{{- if not (kindIs "invalid" .settings.ttl) }}
ttlSecondsAfterFinished: {{ .settings.ttl }}
{{- end }}
template:
  metadata:
    labels:
      {{- include "gptj.labels" . | nindent 6 }}
    annotations:
      # A mesh's sidecar would outlive the work, and the Job would never end.
      sidecar.istio.io/inject: "false"
  spec:
    restartPolicy: Never
    automountServiceAccountToken: false
    {{- include "gptj.podCommon" .root | nindent 4 }}
    {{- with include "gptj.placement" (dict "root" .root "visitor" (not .gpu)) | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- if and .gpu $values.gpu.count $values.runtimeClassName }}
    runtimeClassName: {{ $values.runtimeClassName | quote }}
    {{- end }}
    {{- with $values.podSecurityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    containers:
      - name: {{ .component }}
        image: {{ include "gptj.image" .root | quote }}
        imagePullPolicy: {{ $values.image.pullPolicy }}
        args:
          {{- toYaml (fromJsonArray .args) | nindent 10 }}
        {{- with concat .env $values.extraEnv }}
        env:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        resources:
          {{- include "gptj.resources" (dict "root" .root "resources" .settings.resources "gpu" .gpu) | nindent 10 }}
        {{- with $values.securityContext }}
        securityContext:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        volumeMounts:
          - name: models
            mountPath: /mnt/models
            {{- with $values.cache.subPath }}
            subPath: {{ . | quote }}
            {{- end }}
          - name: tmp
            mountPath: /tmp
          {{- with $values.extraVolumeMounts }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
    volumes:
      - name: models
        persistentVolumeClaim:
          claimName: {{ include "gptj.claim" .root | quote }}
      - name: tmp
        emptyDir: {}
      {{- with $values.extraVolumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end }}

{{/* A template of a Job never changes, so a changed Job is another Job. Call as gptj.jobSpec. */}}
{{- define "gptj.jobName" -}}
{{- printf "%s-%s-%s" (include "gptj.name" .root | trunc 44 | trimSuffix "-") .component (include "gptj.jobSpec" . | sha256sum | trunc 8) -}}
{{- end }}

{{- define "gptj.pullJob" -}}
{{- $env := list -}}
{{- with .Values.download.hfToken -}}
{{- if .existingSecret -}}
{{- $env = list (dict "name" "HF_TOKEN" "valueFrom" (dict "secretKeyRef" (dict "name" .existingSecret "key" .key))) -}}
{{- end -}}
{{- end -}}
{{- dict "component" "pull" "args" (include "gptj.pullArgs" .) "settings" (pick .Values.download "resources" "backoffLimit" "ttl") "gpu" false "env" $env | toJson -}}
{{- end }}

{{- define "gptj.benchmarkJob" -}}
{{- dict "component" "benchmark" "args" (include "gptj.benchmarkArgs" .) "settings" (pick .Values.benchmark "resources" "backoffLimit" "ttl") "gpu" true "env" list | toJson -}}
{{- end }}

{{/* A Job. Call: dict "root" . "component" NAME ... as gptj.jobSpec. */}}
{{- define "gptj.job" -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "gptj.jobName" . | quote }}
  labels:
    {{- include "gptj.labels" . | nindent 4 }}
spec:
  {{- include "gptj.jobSpec" . | nindent 2 }}
{{- end }}
