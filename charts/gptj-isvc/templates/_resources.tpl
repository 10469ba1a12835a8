{{/*
Requests and limits, with the GPUs of a replica if "gpu". Call: dict "root" . "resources" RESOURCES
"gpu" BOOL.
*/}}
{{- define "gptj.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if and .gpu .root.Values.gpu.count -}}
{{- range $kind := list "requests" "limits" -}}
{{- $_ := set (index $resources $kind) $.root.Values.gpu.resource (toString $.root.Values.gpu.count) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}
