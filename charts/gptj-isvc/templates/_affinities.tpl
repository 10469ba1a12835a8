{{/*
The affinity of a pod, or nothing. Call: dict "root" . "gpu" BOOL, whether the pod requests GPUs.

The terms of a required node affinity are alternatives, so each of them gets the labels of gpu and
region. Without gpu.labelValues, a pod that requests no GPU still prefers the GPU nodes.
*/}}
{{- define "gptj.affinity" -}}
{{- $values := .root.Values -}}
{{- $affinity := deepCopy $values.affinity -}}
{{- $node := $affinity.nodeAffinity | default dict -}}

{{- $wanted := list -}}
{{- with $values.gpu.labelValues -}}
{{- $wanted = append $wanted (dict "key" $values.gpu.labelKey "operator" "In" "values" .) -}}
{{- end -}}
{{- with $values.region.values -}}
{{- $wanted = append $wanted (dict "key" $values.region.key "operator" "In" "values" .) -}}
{{- end -}}
{{- if $wanted -}}
{{- $required := $node.requiredDuringSchedulingIgnoredDuringExecution | default dict -}}
{{- $terms := list -}}
{{- range $required.nodeSelectorTerms | default (list dict) -}}
{{- $terms = append $terms (merge (dict "matchExpressions" (concat (.matchExpressions | default list) $wanted)) .) -}}
{{- end -}}
{{- $_ := set $node "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- end -}}

{{- if and $values.gpu.count (not .gpu) (not $values.gpu.labelValues) -}}
{{- $key := "preferredDuringSchedulingIgnoredDuringExecution" -}}
{{- $preference := dict "weight" 100 "preference" (dict "matchExpressions" (list (dict "key" $values.gpu.labelKey "operator" "Exists"))) -}}
{{- $_ := set $node $key (append (index $node $key | default list) $preference) -}}
{{- end -}}

{{- if $node -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- if $affinity -}}{{ toYaml $affinity }}{{- end -}}
{{- end }}
