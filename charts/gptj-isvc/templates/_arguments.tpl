{{/* Command lines of the containers. Each template prints a JSON list of strings. */}}

{{/*
The pull gives its version a tag made from revision and precision. The server and the benchmark wait
for that tag. So after an upgrade to another revision or precision, no replica serves the old version.
*/}}
{{- define "gptj.tagArgs" -}}
{{- $revision := regexReplaceAll "[^A-Za-z0-9._-]" .Values.model.revision "-" -}}
{{- ternary (list "--tag" (printf "%s-%s" $revision (include "gptj.storedPrecision" .))) list .Values.download.enabled | toJson -}}
{{- end }}

{{/*
The precision to pull. The pull Job has no GPU, so it would take bfloat16 for "auto". Volta and Turing
cards compute in fp16, and the weights would then be rounded twice. So "auto" becomes fp16 where all
cards in gpu.labelValues are of these two.
*/}}
{{- define "gptj.storedPrecision" -}}
{{- $old := gt (len .Values.gpu.labelValues) 0 -}}
{{- range .Values.gpu.labelValues -}}
{{- $old = and $old (regexMatch "(?i)(v100|titan|quadro[-_ ]rtx|(^|[-_ ])t4($|[-_ ]))" .) -}}
{{- end -}}
{{- ternary "fp16" .Values.model.precision (and $old (eq .Values.model.precision "auto")) -}}
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

{{- define "gptj.pullArgs" -}}
{{- $args := list "snapshot" "pull" .Values.model.id "--revision" .Values.model.revision "--precision" (include "gptj.storedPrecision" .) "--dest" "/mnt/models" -}}
{{- concat $args (include "gptj.tagArgs" . | fromJsonArray) | toJson -}}
{{- end }}

{{/*
The name of the output folder has a hash of the settings and of the requested machine. So a later pod
of the same Job resumes its results, and another benchmark never does.
*/}}
{{- define "gptj.benchmarkArgs" -}}
{{- $args := list "benchmark" "--model" .Values.model.id "--precision" .Values.model.precision "--wait_for_snapshot" (include "gptj.seconds" .Values.progressDeadline) "--batch-size" (int64 .Values.benchmark.batchSize | toString) "--warmup-rounds" (int64 .Values.benchmark.warmupRounds | toString) -}}
{{- $args = concat $args (include "gptj.tagArgs" . | fromJsonArray) .Values.benchmark.extraArgs -}}
{{- $machine := pick .Values "gpu" "region" "nodeSelector" "affinity" "extraEnv" -}}
{{- $hash := list (include "gptj.image" .) $args .Values.benchmark.resources $machine | toJson | sha256sum | trunc 8 -}}
{{- concat $args (list "--output" (printf "/mnt/models/benchmarks/%s-%s" (include "gptj.name" .) $hash) "--resume") | toJson -}}
{{- end }}
