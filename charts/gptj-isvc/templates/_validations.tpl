{{/*
Refuses values that are valid alone and not together; the schema checks each value alone. The message
names all problems at once. Every other template here prints a JSON list of problems.
*/}}
{{- define "gptj.validate" -}}
{{- $problems := list -}}
{{- range list "name" "scaling" "modelCache" "timeouts" "access" "route" "monitoring" "model" "benchmark" "mode" "metadata" "environment" -}}
{{- $problems = concat $problems (include (printf "gptj.validate.%s" .) $ | fromJsonArray) -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "these values do not fit together:\n  - %s\n" (join "\n  - " $problems)) -}}
{{- end -}}
{{- with include "gptj.missing" (dict "root" . "has" (.Capabilities.APIVersions | toJson | fromJsonArray)) | fromJsonArray -}}
{{- fail (printf "this cluster lacks what these values need:\n  - %s\n" (join "\n  - " .)) -}}
{{- end -}}
{{- end }}

{{- define "gptj.validate.name" -}}
{{- $problems := list -}}
{{- $name := include "gptj.name" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- $problems = append $problems (printf "name %q (fullnameOverride, or the release's name): KServe takes lower-case letters, digits and hyphens; it must begin with a letter and not end with a hyphen" $name) -}}
{{- end -}}
{{- if gt (len $name) 53 -}}
{{- $problems = append $problems (printf "name %q (fullnameOverride, or the release's name) has %d characters: at most 53" $name (len $name)) -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{- define "gptj.validate.scaling" -}}
{{- $problems := list -}}
{{- if not .Values.benchmark.only -}}
{{- with .Values.scaling -}}
{{- if and .maxReplicas (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- $problems = append $problems (printf "scaling.minReplicas %d is above scaling.maxReplicas %d" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- if gt (include "gptj.seconds" .scaleToZeroPodRetentionPeriod | int) 3600 -}}
{{- $problems = append $problems (printf "scaling.scaleToZeroPodRetentionPeriod %s: Knative takes at most 1h" .scaleToZeroPodRetentionPeriod) -}}
{{- end -}}
{{- end -}}
{{- $ofMode := ternary "gptj.validate.scalingKnative" "gptj.validate.scalingStandard" (eq .Values.deploymentMode "Knative") -}}
{{- $problems = concat $problems (include $ofMode .Values.scaling | fromJsonArray) -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{/* Call: .Values.scaling. */}}
{{- define "gptj.validate.scalingKnative" -}}
{{- $problems := list -}}
{{- if not (has .scaleMetric (list "" "concurrency" "rps")) -}}
{{- $problems = append $problems (printf "scaling.scaleMetric %s: Knative scales on concurrency or rps" .scaleMetric) -}}
{{- end -}}
{{- if .autoscalerClass -}}
{{- $problems = append $problems (printf "scaling.autoscalerClass %s: only with deploymentMode Standard; Knative has its own autoscaler" .autoscalerClass) -}}
{{- end -}}
{{- if .autoScaling -}}
{{- $problems = append $problems "scaling.autoScaling: only with deploymentMode Standard; use scaleMetric and scaleTarget" -}}
{{- end -}}
{{- if .keda.enabled -}}
{{- $problems = append $problems "scaling.keda.enabled: only with deploymentMode Standard; Knative has its own autoscaler" -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{/* Call: .Values.scaling. */}}
{{- define "gptj.validate.scalingStandard" -}}
{{- $problems := list -}}
{{- if not (has .scaleMetric (list "" "cpu" "memory")) -}}
{{- $problems = append $problems (printf "scaling.scaleMetric %s: deploymentMode Standard scales on cpu or memory, or with KEDA on the metrics of scaling.autoScaling" .scaleMetric) -}}
{{- end -}}
{{- if not (kindIs "invalid" .targetUtilization) -}}
{{- $problems = append $problems (printf "scaling.targetUtilization %d: only with deploymentMode Knative; use scaleTarget" (int .targetUtilization)) -}}
{{- end -}}
{{- if not .maxReplicas -}}
{{- $problems = append $problems "scaling.maxReplicas 0 means no limit only with deploymentMode Knative; set a number" -}}
{{- end -}}
{{- $types := list -}}
{{- range .autoScaling.metrics -}}
{{- $types = append $types .type -}}
{{- end -}}
{{- if .keda.enabled -}}
{{- $problems = concat $problems (include "gptj.validate.ownScaledObject" . | fromJsonArray) -}}
{{- else if eq .autoscalerClass "keda" -}}
{{- if not $types -}}
{{- $problems = append $problems "scaling.autoscalerClass keda needs scaling.autoScaling.metrics: the metrics that KEDA scales on" -}}
{{- else if and (eq (int .minReplicas) 0) (not (without $types "Resource")) -}}
{{- $problems = append $problems "scaling.minReplicas 0 with KEDA needs a metric that is not of type Resource: without a replica there is no CPU or memory use to measure" -}}
{{- end -}}
{{- if .scaleMetric -}}
{{- $problems = append $problems (printf "scaling.scaleMetric %s: with autoscalerClass keda, set the metrics in scaling.autoScaling" .scaleMetric) -}}
{{- end -}}
{{- else -}}
{{- if eq (int .minReplicas) 0 -}}
{{- $problems = append $problems "scaling.minReplicas 0: deploymentMode Standard scales to zero only with KEDA; use 1 or more, deploymentMode Knative, or scaling.autoscalerClass keda" -}}
{{- end -}}
{{- if without $types "Resource" -}}
{{- $problems = append $problems "scaling.autoScaling: metrics of other types than Resource need scaling.autoscalerClass keda" -}}
{{- end -}}
{{- if and (eq .scaleMetric "memory") (not .scaleTarget) -}}
{{- $problems = append $problems "scaling.scaleMetric memory needs scaling.scaleTarget, in MiB" -}}
{{- end -}}
{{- if and (ne .scaleMetric "memory") (gt (int .scaleTarget) 100) -}}
{{- $problems = append $problems (printf "scaling.scaleTarget %d: percent of the requested CPUs, so at most 100" (int .scaleTarget)) -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{/* Call: .Values.scaling. */}}
{{- define "gptj.validate.ownScaledObject" -}}
{{- $problems := list -}}
{{- if not .keda.serverAddress -}}
{{- $problems = append $problems "scaling.keda.enabled needs scaling.keda.serverAddress: the Prometheus that KEDA asks" -}}
{{- end -}}
{{- if not (has .autoscalerClass (list "" "external")) -}}
{{- $problems = append $problems (printf "scaling.autoscalerClass %s with scaling.keda.enabled: two autoscalers for one Deployment; leave it empty" .autoscalerClass) -}}
{{- end -}}
{{- if or .autoScaling .scaleMetric (not (kindIs "invalid" .scaleTarget)) -}}
{{- $problems = append $problems "scaling.autoScaling, scaleMetric and scaleTarget are KServe's; with scaling.keda.enabled use query and threshold of scaling.keda" -}}
{{- end -}}
{{- if and (eq (int .minReplicas) 0) (not .keda.query) -}}
{{- $problems = append $problems "scaling.minReplicas 0 with scaling.keda.enabled: the replicas count their sequences, and without a replica nobody does; use 1 or more, deploymentMode Knative, or a scaling.keda.query that counts them elsewhere" -}}
{{- end -}}
{{- $fallback := .keda.fallback.replicas -}}
{{- if not (kindIs "invalid" $fallback) -}}
{{- if or (lt (int $fallback) (int .minReplicas)) (gt (int $fallback) (int .maxReplicas)) -}}
{{- $problems = append $problems (printf "scaling.keda.fallback.replicas %d: not from scaling.minReplicas %d to scaling.maxReplicas %d" (int $fallback) (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{- define "gptj.validate.modelCache" -}}
{{- $problems := list -}}
{{- $modes := .Values.cache.accessModes -}}
{{- $benchmark := .Values.benchmark -}}
{{- $onlyOneNode := not (or (has "ReadWriteMany" $modes) (has "ReadOnlyMany" $modes) .Values.allow.sharedReadWriteOnce) -}}
{{- if and $onlyOneNode (not $benchmark.only) -}}
{{- if ne (int .Values.scaling.maxReplicas) 1 -}}
{{- $problems = append $problems (printf "scaling.maxReplicas %d with cache.accessModes [ReadWriteOnce]: a second replica on another node could not mount the volume; use maxReplicas 1, accessModes [ReadWriteMany], or allow.sharedReadWriteOnce true if it can (an existing claim's modes go into cache.accessModes, too)" (int .Values.scaling.maxReplicas)) -}}
{{- end -}}
{{- if $benchmark.batchSize -}}
{{- $problems = append $problems (printf "benchmark.batchSize %d beside a service with cache.accessModes [ReadWriteOnce]: on another node the benchmark could not mount the volume; use accessModes [ReadWriteMany], benchmark.only true first, or allow.sharedReadWriteOnce true if it can" (int $benchmark.batchSize)) -}}
{{- end -}}
{{- end -}}
{{- if and (not (has "ReadWriteOnce" $modes)) (not (has "ReadWriteMany" $modes)) (or .Values.download.enabled $benchmark.batchSize) -}}
{{- $problems = append $problems "cache.accessModes [ReadOnlyMany]: the Jobs write to the volume; add ReadWriteOnce or ReadWriteMany, or set download.enabled false and benchmark.batchSize 0" -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{- define "gptj.validate.timeouts" -}}
{{- $problems := list -}}
{{- $knative := eq .Values.deploymentMode "Knative" -}}
{{- if and $knative (not (kindIs "invalid" .Values.terminationGracePeriodSeconds)) -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds %d: only with deploymentMode Standard; Knative gives a request timeoutSeconds" (int .Values.terminationGracePeriodSeconds)) -}}
{{- end -}}
{{- if and $knative (gt (int .Values.timeoutSeconds) 600) (not .Values.allow.longTimeout) -}}
{{- $problems = append $problems (printf "timeoutSeconds %d: Knative's own limit is 600; set allow.longTimeout true if your cluster's max-revision-timeout-seconds is higher" (int .Values.timeoutSeconds)) -}}
{{- end -}}
{{- $grace := include "gptj.serverGracePeriod" . | int -}}
{{- $delay := include "gptj.drainDelay" . -}}
{{- if and (gt (float64 $delay) 0.0) (ge (float64 $delay) (float64 $grace)) -}}
{{- $problems = append $problems (printf "drainDelaySeconds %s: less than the %d s of %s, or the replica is killed while it still takes requests" $delay $grace (ternary "timeoutSeconds" "terminationGracePeriodSeconds" $knative)) -}}
{{- end -}}
{{- if and .Values.lifecycle (lt $grace 1) -}}
{{- $problems = append $problems (printf "lifecycle.preStop.sleep.seconds: shorter than the %s s of terminationGracePeriodSeconds, or the replica is killed before the server learns that it stops" (include "gptj.gracePeriod" .)) -}}
{{- end -}}
{{- $startup := include "gptj.startupSeconds" . | int -}}
{{- $deadline := include "gptj.seconds" .Values.progressDeadline | int -}}
{{- if lt $deadline 120 -}}
{{- $problems = append $problems (printf "progressDeadline %s: at least 2m; no replica starts sooner" .Values.progressDeadline) -}}
{{- else if and $knative (gt $startup $deadline) -}}
{{- $problems = append $problems (printf "progressDeadline %s is shorter than the %d s that probes.startup allows (periodSeconds x failureThreshold)" .Values.progressDeadline $startup) -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{- define "gptj.validate.access" -}}
{{- $problems := list -}}
{{- if and .Values.tls.existingSecret (eq .Values.deploymentMode "Knative") -}}
{{- $problems = append $problems "tls.existingSecret: only with deploymentMode Standard; Knative's queue proxy speaks plain HTTP to the container of its own pod. Let Knative's ingress speak HTTPS (its external-domain-tls)" -}}
{{- end -}}
{{- if and .Values.tls.existingSecret (eq .Values.protocol "grpc") -}}
{{- $problems = append $problems "tls.existingSecret with protocol grpc: the port named h2c has no TLS. Let a mesh or a Gateway speak TLS" -}}
{{- end -}}
{{- if and .Values.apiKeys.openMetrics (not .Values.apiKeys.existingSecret) -}}
{{- $problems = append $problems "apiKeys.openMetrics without apiKeys.existingSecret: without keys /metrics is open" -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled .Values.apiKeys.existingSecret (not .Values.apiKeys.openMetrics) -}}
{{- $problems = append $problems "podMonitor.enabled with apiKeys.existingSecret: Prometheus sends no API key; set apiKeys.openMetrics true" -}}
{{- end -}}
{{- if and .Values.networkPolicy.tracesTo (not .Values.tracing.endpoint) -}}
{{- $problems = append $problems "networkPolicy.tracesTo without tracing.endpoint: there are no traces" -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{- define "gptj.validate.model" -}}
{{- $problems := list -}}
{{- with .Values.model -}}
{{- if and (not $.Values.download.enabled) (ne .revision "main") -}}
{{- $problems = append $problems (printf "model.revision %s with download.enabled false: no Job pulls it; the server takes the latest pull in the model cache" .revision) -}}
{{- end -}}
{{- if and (not $.Values.download.enabled) (ne (toString $.Values.download.verify) "") -}}
{{- $problems = append $problems (printf "download.verify %v with download.enabled false: no Job reads the model cache" $.Values.download.verify) -}}
{{- end -}}
{{- if and .defaults.min_length .defaults.max_length (gt (int .defaults.min_length) (int .defaults.max_length)) -}}
{{- $problems = append $problems (printf "model.defaults.min_length %d is above model.defaults.max_length %d" (int .defaults.min_length) (int .defaults.max_length)) -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{- define "gptj.validate.benchmark" -}}
{{- $problems := list -}}
{{- if and .Values.benchmark.only (not .Values.benchmark.batchSize) -}}
{{- $problems = append $problems "benchmark.only true with benchmark.batchSize 0 leaves nothing to do; set the maximum batch size to measure" -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{/* Values that only one deploymentMode has. */}}
{{- define "gptj.validate.mode" -}}
{{- $problems := list -}}
{{- if eq .Values.deploymentMode "Knative" -}}
{{- if .Values.deploymentStrategy -}}
{{- $problems = append $problems "deploymentStrategy: only with deploymentMode Standard; Knative replaces revisions itself" -}}
{{- end -}}
{{- if eq .Values.protocol "grpc" -}}
{{- $problems = append $problems "protocol grpc: only with deploymentMode Standard; Knative gives a container one port, and probes and metrics need the one of HTTP" -}}
{{- end -}}
{{- if .Values.lifecycle -}}
{{- $problems = append $problems "lifecycle: only with deploymentMode Standard; Knative takes no hooks and has a preStop hook of its own" -}}
{{- end -}}
{{- $mounted := list -}}
{{- range .Values.extraVolumeMounts }}{{ $mounted = append $mounted .name }}{{ end -}}
{{- range .Values.extraVolumes -}}
{{- if not (has .name $mounted) -}}
{{- $problems = append $problems (printf "extraVolumes %s: Knative refuses a volume without a mount; add it to extraVolumeMounts" .name) -}}
{{- end -}}
{{- end -}}
{{- else if not (kindIs "invalid" .Values.canaryTrafficPercent) -}}
{{- $problems = append $problems (printf "canaryTrafficPercent %d: only with deploymentMode Knative; KServe ignores it in Standard mode, and the new version would get all requests" (int .Values.canaryTrafficPercent)) -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{/* Annotations that the chart sets from other values, and labels by which objects find the pods. */}}
{{- define "gptj.validate.metadata" -}}
{{- $problems := list -}}
{{- $values := dict "serving.kserve.io/deploymentMode" "deploymentMode" "serving.kserve.io/autoscalerClass" "scaling.autoscalerClass" "serving.knative.dev/progress-deadline" "progressDeadline" "autoscaling.knative.dev/scale-to-zero-pod-retention-period" "scaling.scaleToZeroPodRetentionPeriod" "autoscaling.knative.dev/target-utilization-percentage" "scaling.targetUtilization" "storage.kserve.io/readonly" "cache.readOnly" -}}
{{- range $map := list "annotations" "podAnnotations" -}}
{{- range $key, $_ := index $.Values $map -}}
{{- if hasKey $values $key -}}
{{- $problems = append $problems (printf "%s %s: set %s instead" $map $key (get $values $key)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $key, $_ := .Values.podLabels -}}
{{- if has $key (list "app" "component" "serving.kserve.io/inferenceservice" "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component") -}}
{{- $problems = append $problems (printf "podLabels %s: KServe or the chart sets it, and Services and policies find the pods by it" $key) -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}

{{- define "gptj.validate.environment" -}}
{{- $problems := list -}}
{{- $knative := eq .Values.deploymentMode "Knative" -}}
{{- $tracing := list -}}
{{- range include "gptj.tracingEnv" . | fromJsonArray }}{{ $tracing = append $tracing .name }}{{ end -}}
{{- range .Values.extraEnv -}}
{{- if eq .name "PYTHONPATH" -}}
{{- $problems = append $problems "extraEnv PYTHONPATH: would load other code than the image's" -}}
{{- else if eq .name "STORAGE_URI" -}}
{{- $problems = append $problems "extraEnv STORAGE_URI: the chart sets it; use cache.existingClaim and cache.subPath" -}}
{{- else if has .name $tracing -}}
{{- $problems = append $problems (printf "extraEnv %s: the values of tracing set it" .name) -}}
{{- else if and $knative (has .name (list "PORT" "K_SERVICE" "K_CONFIGURATION" "K_REVISION")) -}}
{{- $problems = append $problems (printf "extraEnv %s: Knative sets it" .name) -}}
{{- else if and (eq .name "HF_TOKEN") $.Values.download.hfToken.existingSecret -}}
{{- $problems = append $problems "extraEnv HF_TOKEN: download.hfToken.existingSecret sets it" -}}
{{- else if and (regexMatch "(?i)(^|_)(token|secret|password|passwd|credentials?|key|apikey)(_|$)" .name) .value -}}
{{- $problems = append $problems (printf "extraEnv %s: a secret's value does not belong in values; use valueFrom.secretKeyRef (for HF_TOKEN, download.hfToken.existingSecret)" .name) -}}
{{- end -}}
{{- end -}}
{{- toJson $problems -}}
{{- end }}
