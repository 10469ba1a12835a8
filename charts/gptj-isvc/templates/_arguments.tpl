{{/* Command lines of the containers. Each template prints a JSON list of strings. */}}

{{/* A list's numbers and booleans as strings. Call: LIST. A whole number of a values file is a float. */}}
{{- define "gptj.strings" -}}
{{- $strings := list -}}
{{- range . -}}
{{- $string := toString . -}}
{{- if kindIs "float64" . -}}
{{- $string = ternary (int64 . | toString) $string (eq (float64 (int64 .)) .) -}}
{{- end -}}
{{- $strings = append $strings $string -}}
{{- end -}}
{{- toJson $strings -}}
{{- end }}

{{/*
The pull gives its version a tag made from revision, precision and quantization. The server and the
benchmark wait for that tag. So after an upgrade to others, no replica serves the old version.
*/}}
{{- define "gptj.tagArgs" -}}
{{- $revision := regexReplaceAll "[^A-Za-z0-9._-]" .Values.model.revision "-" -}}
{{- $quantized := ternary "-int8" "" (eq .Values.model.quantization "int8") -}}
{{- ternary (list "--tag" (printf "%s-%s%s" $revision (include "gptj.storedPrecision" .) $quantized)) list .Values.download.enabled | toJson -}}
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

{{/*
The GPUs of the container, all of them by name. With "auto" a process that finds none would run on the
CPU, and hold the GPUs all the same.
*/}}
{{- define "gptj.deviceArgs" -}}
{{- $devices := list -}}
{{- range until (int .Values.gpu.count) -}}
{{- $devices = append $devices (printf "cuda:%d" .) -}}
{{- end -}}
{{- ternary (list "--device" (join "," $devices)) list (gt (len $devices) 0) | toJson -}}
{{- end }}

{{- define "gptj.serveArgs" -}}
{{- $args := list "serve" "--model" .Values.model.id "--model_name" (include "gptj.modelName" .) "--precision" .Values.model.precision "--quantization" .Values.model.quantization "--wait_for_snapshot" (include "gptj.startupSeconds" .) "--http_port" (include "gptj.port" .) -}}
{{- $args = concat $args (ternary (list "--enable_grpc" "true" "--grpc_port" (include "gptj.grpcPort" .)) (list "--enable_grpc" "false") (eq .Values.protocol "grpc")) -}}
{{- $args = concat $args (include "gptj.deviceArgs" . | fromJsonArray) (include "gptj.tagArgs" . | fromJsonArray) -}}
{{- $args = concat $args (include "gptj.endingArgs" . | fromJsonArray) (include "gptj.accessArgs" . | fromJsonArray) (list "--log_format" .Values.logFormat) -}}
{{- $args = concat $args (include "gptj.metricsArgs" . | fromJsonArray) -}}
{{- range $flag, $value := dict "--max_queued_requests" .Values.queue.maxRequests "--max_queued_tokens" .Values.queue.maxTokens -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $args = concat $args (list $flag (int64 $value | toString)) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := .Values.model.defaults -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $args = concat $args (list (printf "--%s" $name) (toString $value)) -}}
{{- end -}}
{{- end -}}
{{- concat $args (include "gptj.strings" .Values.extraArgs | fromJsonArray) | toJson -}}
{{- end }}

{{/*
How long a request may take, and what becomes of it when the replica stops. The server answers a
little before whoever waits for it gives up.
*/}}
{{- define "gptj.endingArgs" -}}
{{- $deadline := max 1 (sub (int .Values.timeoutSeconds) 5) -}}
{{- list "--max_request_seconds" (toString $deadline) "--drain_delay" (include "gptj.drainDelay" .) "--grace_period" (include "gptj.serverGracePeriod" . | int | max 1 | toString) | toJson -}}
{{- end }}

{{/* Who may ask, and over which protocol. */}}
{{- define "gptj.accessArgs" -}}
{{- $args := list -}}
{{- with include "gptj.trustedProxies" . | fromJsonArray -}}
{{- $args = concat $args (list "--trusted_proxies" (join "," .)) -}}
{{- end -}}
{{- if .Values.apiKeys.existingSecret -}}
{{- $args = concat $args (list "--api_key_file" (printf "%s/keys" (include "gptj.apiKeyFolder" .))) -}}
{{- if .Values.apiKeys.openMetrics -}}
{{- $args = concat $args (list "--open_metrics" "true") -}}
{{- end -}}
{{- end -}}
{{- if .Values.tls.existingSecret -}}
{{- $folder := include "gptj.tlsFolder" . -}}
{{- $args = concat $args (list "--ssl_certfile" (printf "%s/tls.crt" $folder) "--ssl_keyfile" (printf "%s/tls.key" $folder)) -}}
{{- end -}}
{{- toJson $args -}}
{{- end }}

{{- define "gptj.pullArgs" -}}
{{- $args := list "snapshot" "pull" .Values.model.id "--revision" .Values.model.revision "--precision" (include "gptj.storedPrecision" .) "--quantization" .Values.model.quantization "--dest" "/mnt/models" -}}
{{- if ne (toString .Values.download.verify) "" -}}
{{- $args = append $args "--verify" -}}
{{- end -}}
{{- concat $args (include "gptj.tagArgs" . | fromJsonArray) | toJson -}}
{{- end }}

{{/*
The name of the output folder has a hash of the settings and of the requested machine. So a later pod
of the same Job resumes its results, and another benchmark never does.
*/}}
{{- define "gptj.benchmarkArgs" -}}
{{- $args := list "benchmark" "--model" .Values.model.id "--precision" .Values.model.precision "--quantization" .Values.model.quantization "--wait_for_snapshot" (include "gptj.seconds" .Values.progressDeadline) "--batch-size" (int64 .Values.benchmark.batchSize | toString) "--warmup-rounds" (int64 .Values.benchmark.warmupRounds | toString) -}}
{{- $args = concat $args (include "gptj.deviceArgs" . | fromJsonArray) (include "gptj.tagArgs" . | fromJsonArray) (include "gptj.strings" .Values.benchmark.extraArgs | fromJsonArray) -}}
{{- $machine := pick .Values "gpu" "region" "nodeSelector" "affinity" "extraEnv" "envFrom" -}}
{{- $hash := list (include "gptj.image" .) $args .Values.benchmark.resources $machine | toJson | sha256sum | trunc 8 -}}
{{- concat $args (list "--output" (printf "/mnt/models/benchmarks/%s-%s" (include "gptj.name" .) $hash) "--resume") | toJson -}}
{{- end }}
