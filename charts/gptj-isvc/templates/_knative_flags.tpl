{{/*
A JSON map of the feature flags in Knative's ConfigMap config-features that the InferenceService
needs. Without a flag, Knative refuses the field of the pod that the flag is for.
*/}}
{{- define "gptj.knativeFlags" -}}
{{- $v := .Values -}}
{{- $flags := dict -}}
{{- if include "gptj.affinity" (dict "root" . "gpu" true) }}{{ $_ := set $flags "kubernetes.podspec-affinity" "enabled" }}{{ end -}}
{{- if $v.nodeSelector }}{{ $_ := set $flags "kubernetes.podspec-nodeselector" "enabled" }}{{ end -}}
{{- if or $v.tolerations (and $v.gpu.count $v.gpu.tolerateTaint) }}{{ $_ := set $flags "kubernetes.podspec-tolerations" "enabled" }}{{ end -}}
{{- if $v.topologySpreadConstraints }}{{ $_ := set $flags "kubernetes.podspec-topologyspreadconstraints" "enabled" }}{{ end -}}
{{- if $v.priorityClassName }}{{ $_ := set $flags "kubernetes.podspec-priorityclassname" "enabled" }}{{ end -}}
{{- if and $v.gpu.count $v.runtimeClassName }}{{ $_ := set $flags "kubernetes.podspec-runtimeclassname" "enabled" }}{{ end -}}
{{- $context := $v.securityContext | default dict -}}
{{- if hasKey $context "runAsGroup" }}{{ $_ := set $flags "kubernetes.podspec-securitycontext" "enabled" }}{{ end -}}
{{- if dig "capabilities" "add" "" $context }}{{ $_ := set $flags "kubernetes.containerspec-addcapabilities" "enabled" }}{{ end -}}
{{- $volumes := $v.extraVolumes -}}
{{- if eq $v.cache.mountVia "volume" -}}
{{- $volumes = append $volumes (dict "persistentVolumeClaim" (dict "readOnly" $v.cache.readOnly)) -}}
{{- end -}}
{{- range $volumes -}}
{{- if hasKey . "persistentVolumeClaim" -}}
{{- $_ := set $flags "kubernetes.podspec-persistent-volume-claim" "enabled" -}}
{{- if not .persistentVolumeClaim.readOnly -}}
{{- $_ := set $flags "kubernetes.podspec-persistent-volume-write" "enabled" -}}
{{- end -}}
{{- end -}}
{{- if hasKey . "hostPath" }}{{ $_ := set $flags "kubernetes.podspec-volumes-hostpath" "enabled" }}{{ end -}}
{{- if hasKey . "csi" }}{{ $_ := set $flags "kubernetes.podspec-volumes-csi" "enabled" }}{{ end -}}
{{- end -}}
{{- range $v.extraEnv -}}
{{- if or (dig "valueFrom" "fieldRef" "" .) (dig "valueFrom" "resourceFieldRef" "" .) -}}
{{- $_ := set $flags "kubernetes.podspec-fieldref" "enabled" -}}
{{- end -}}
{{- end -}}
{{- toJson $flags -}}
{{- end }}
