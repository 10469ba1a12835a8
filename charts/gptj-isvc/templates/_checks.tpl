{{/*
Values that are fine alone and not together; the schema sees to the rest. All are named at once.
*/}}
{{- define "gptj.checks" -}}
{{- $v := .Values -}}
{{- $name := include "gptj.name" . -}}
{{- $knative := eq $v.deploymentMode "Knative" -}}
{{- $problems := list -}}

{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- $problems = append $problems (printf "name %q (fullnameOverride, or the release's): KServe takes lower-case letters, digits and hyphens, a letter first, no hyphen last" $name) -}}
{{- end -}}
{{- if gt (len $name) 53 -}}
{{- $problems = append $problems (printf "name %q (fullnameOverride, or the release's) has %d characters: at most 53" $name (len $name)) -}}
{{- end -}}

{{- if not $v.benchmark.only -}}
{{- with $v.scaling -}}
{{- if and .maxReplicas (gt (int .minReplicas) (int .maxReplicas)) -}}
{{- $problems = append $problems (printf "scaling.minReplicas %d is above scaling.maxReplicas %d" (int .minReplicas) (int .maxReplicas)) -}}
{{- end -}}
{{- if gt (include "gptj.seconds" .scaleToZeroPodRetentionPeriod | int) 3600 -}}
{{- $problems = append $problems (printf "scaling.scaleToZeroPodRetentionPeriod %s: Knative takes at most 1h" .scaleToZeroPodRetentionPeriod) -}}
{{- end -}}
{{- if $knative -}}
{{- if not (has .scaleMetric (list "" "concurrency" "rps")) -}}
{{- $problems = append $problems (printf "scaling.scaleMetric %s: Knative scales on concurrency or rps" .scaleMetric) -}}
{{- end -}}
{{- if .autoscalerClass -}}
{{- $problems = append $problems (printf "scaling.autoscalerClass %s: only with deploymentMode Standard; Knative has its own autoscaler" .autoscalerClass) -}}
{{- end -}}
{{- if .autoScaling -}}
{{- $problems = append $problems "scaling.autoScaling: only with deploymentMode Standard; use scaleMetric and scaleTarget" -}}
{{- end -}}
{{- else -}}
{{- if not (has .scaleMetric (list "" "cpu" "memory")) -}}
{{- $problems = append $problems (printf "scaling.scaleMetric %s: deploymentMode Standard scales on cpu or memory, or with KEDA on what scaling.autoScaling says" .scaleMetric) -}}
{{- end -}}
{{- if not (kindIs "invalid" .targetUtilization) -}}
{{- $problems = append $problems (printf "scaling.targetUtilization %d: only with deploymentMode Knative; use scaleTarget" (int .targetUtilization)) -}}
{{- end -}}
{{- if not .maxReplicas -}}
{{- $problems = append $problems "scaling.maxReplicas 0 means no limit only with deploymentMode Knative; set a number" -}}
{{- end -}}
{{- $triggers := list -}}
{{- range .autoScaling.metrics -}}
{{- $triggers = append $triggers .type -}}
{{- end -}}
{{- if eq .autoscalerClass "keda" -}}
{{- if not $triggers -}}
{{- $problems = append $problems "scaling.autoscalerClass keda needs scaling.autoScaling.metrics: what KEDA is to scale on" -}}
{{- else if and (eq (int .minReplicas) 0) (not (without $triggers "Resource")) -}}
{{- $problems = append $problems "scaling.minReplicas 0 with KEDA needs a metric that is not of type Resource: nobody uses CPU or memory when there is no replica" -}}
{{- end -}}
{{- if .scaleMetric -}}
{{- $problems = append $problems (printf "scaling.scaleMetric %s: with autoscalerClass keda say it in scaling.autoScaling" .scaleMetric) -}}
{{- end -}}
{{- else -}}
{{- if eq (int .minReplicas) 0 -}}
{{- $problems = append $problems "scaling.minReplicas 0: deploymentMode Standard scales to zero only with KEDA; use 1 or more, deploymentMode Knative, or scaling.autoscalerClass keda" -}}
{{- end -}}
{{- if without $triggers "Resource" -}}
{{- $problems = append $problems "scaling.autoScaling: metrics of other types than Resource need scaling.autoscalerClass keda" -}}
{{- end -}}
{{- if and (eq .scaleMetric "memory") (not .scaleTarget) -}}
{{- $problems = append $problems "scaling.scaleMetric memory needs scaling.scaleTarget, in MiB" -}}
{{- end -}}
{{- if and (ne .scaleMetric "memory") (gt (int .scaleTarget) 100) -}}
{{- $problems = append $problems (printf "scaling.scaleTarget %d: percent of the CPUs asked for, so at most 100" (int .scaleTarget)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- with $v.cache -}}
{{- $shared := or (has "ReadWriteMany" .accessModes) (has "ReadOnlyMany" .accessModes) -}}
{{- if not (or $shared $v.allow.sharedReadWriteOnce $v.benchmark.only (eq (int $v.scaling.maxReplicas) 1)) -}}
{{- $problems = append $problems (printf "scaling.maxReplicas %d with cache.accessModes [ReadWriteOnce]: a second replica on another node could not mount the volume; use maxReplicas 1, accessModes [ReadWriteMany], or allow.sharedReadWriteOnce true if it can (an existing claim's modes go into cache.accessModes, too)" (int $v.scaling.maxReplicas)) -}}
{{- end -}}
{{- if and $v.benchmark.batchSize (not (or $shared $v.allow.sharedReadWriteOnce $v.benchmark.only)) -}}
{{- $problems = append $problems (printf "benchmark.batchSize %d beside a service with cache.accessModes [ReadWriteOnce]: on another node the benchmark could not mount the volume; use accessModes [ReadWriteMany], benchmark.only true first, or allow.sharedReadWriteOnce true if it can" (int $v.benchmark.batchSize)) -}}
{{- end -}}
{{- if not (or (has "ReadWriteOnce" .accessModes) (has "ReadWriteMany" .accessModes)) -}}
{{- if or $v.download.enabled $v.benchmark.batchSize -}}
{{- $problems = append $problems "cache.accessModes [ReadOnlyMany]: the Jobs write to the volume; add ReadWriteOnce or ReadWriteMany, or set download.enabled false and benchmark.batchSize 0" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if $knative -}}
{{- if $v.deploymentStrategy -}}
{{- $problems = append $problems "deploymentStrategy: only with deploymentMode Standard; Knative replaces revisions itself" -}}
{{- end -}}
{{- if not (kindIs "invalid" $v.terminationGracePeriodSeconds) -}}
{{- $problems = append $problems (printf "terminationGracePeriodSeconds %d: only with deploymentMode Standard; Knative gives a request timeoutSeconds" (int $v.terminationGracePeriodSeconds)) -}}
{{- end -}}
{{- if and (gt (int $v.timeoutSeconds) 600) (not $v.allow.longTimeout) -}}
{{- $problems = append $problems (printf "timeoutSeconds %d: Knative's own limit is 600; allow.longTimeout true if your cluster's max-revision-timeout-seconds is higher" (int $v.timeoutSeconds)) -}}
{{- end -}}
{{- range $v.extraVolumes -}}
{{- $volume := .name -}}
{{- $mounted := false -}}
{{- range $v.extraVolumeMounts }}{{ $mounted = or $mounted (eq .name $volume) }}{{ end -}}
{{- if not $mounted -}}
{{- $problems = append $problems (printf "extraVolumes %s: Knative refuses a volume that nothing mounts; add it to extraVolumeMounts" $volume) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- $budget := include "gptj.startupSeconds" . | int -}}
{{- $deadline := include "gptj.seconds" $v.progressDeadline | int -}}
{{- if lt $deadline 120 -}}
{{- $problems = append $problems (printf "progressDeadline %s: at least 2m; no replica starts sooner" $v.progressDeadline) -}}
{{- else if and $knative (gt $budget $deadline) -}}
{{- $problems = append $problems (printf "progressDeadline %s is shorter than the %d s that probes.startup allows (periodSeconds x failureThreshold)" $v.progressDeadline $budget) -}}
{{- end -}}

{{- $own := dict "serving.kserve.io/deploymentMode" "deploymentMode" "serving.kserve.io/autoscalerClass" "scaling.autoscalerClass" "serving.knative.dev/progress-deadline" "progressDeadline" "autoscaling.knative.dev/scale-to-zero-pod-retention-period" "scaling.scaleToZeroPodRetentionPeriod" "autoscaling.knative.dev/target-utilization-percentage" "scaling.targetUtilization" "storage.kserve.io/readonly" "cache.readOnly" -}}
{{- range $key, $_ := $v.annotations -}}
{{- if hasKey $own $key -}}
{{- $problems = append $problems (printf "annotations %s: set %s instead" $key (get $own $key)) -}}
{{- end -}}
{{- end -}}

{{- if and (not $v.download.enabled) (ne $v.model.revision "main") -}}
{{- $problems = append $problems (printf "model.revision %s with download.enabled false: nothing pulls it; the latest pull of the volume is served" $v.model.revision) -}}
{{- end -}}

{{- with $v.model.defaults -}}
{{- if and .min_length .max_length -}}
{{- if gt (int .min_length) (int .max_length) -}}
{{- $problems = append $problems (printf "model.defaults.min_length %d is above model.defaults.max_length %d" (int .min_length) (int .max_length)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if and $v.benchmark.only (not $v.benchmark.batchSize) -}}
{{- $problems = append $problems "benchmark.only true with benchmark.batchSize 0 leaves nothing to do; set the largest batch to measure" -}}
{{- end -}}

{{- range $v.extraEnv -}}
{{- if eq .name "PYTHONPATH" -}}
{{- $problems = append $problems "extraEnv PYTHONPATH: would load other code than the image's" -}}
{{- else if eq .name "STORAGE_URI" -}}
{{- $problems = append $problems "extraEnv STORAGE_URI: the chart sets it; use cache.existingClaim and cache.subPath" -}}
{{- else if and $knative (has .name (list "PORT" "K_SERVICE" "K_CONFIGURATION" "K_REVISION")) -}}
{{- $problems = append $problems (printf "extraEnv %s: Knative sets it" .name) -}}
{{- else if and (eq .name "HF_TOKEN") $v.download.hfToken.existingSecret -}}
{{- $problems = append $problems "extraEnv HF_TOKEN: download.hfToken.existingSecret sets it" -}}
{{- else if and (regexMatch "(?i)(^|_)(token|secret|password|passwd|credentials?|key|apikey)(_|$)" .name) .value -}}
{{- $problems = append $problems (printf "extraEnv %s: a secret's value does not belong in values; use valueFrom.secretKeyRef (for HF_TOKEN, download.hfToken.existingSecret)" .name) -}}
{{- end -}}
{{- end -}}

{{- if $problems -}}
{{- fail (printf "these values do not fit together:\n  - %s\n" (join "\n  - " $problems)) -}}
{{- end -}}
{{- end }}
