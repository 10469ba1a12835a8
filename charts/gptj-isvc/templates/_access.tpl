{{/* How the predictor is reached, and who may ask it. */}}

{{/* kserve moves from 8080 to 8443 for HTTPS; the chart says so with --http_port. */}}
{{- define "gptj.port" -}}
{{- ternary 8443 8080 (ne .Values.tls.existingSecret "") -}}
{{- end }}

{{- define "gptj.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") -}}
{{- end }}

{{/* The port's name in the container; Knative takes no other than http1. */}}
{{- define "gptj.portName" -}}
{{- ternary "https" "http1" (ne .Values.tls.existingSecret "") -}}
{{- end }}

{{- define "gptj.grpcPort" -}}8081{{- end }}

{{/*
The container's ports, a JSON list. KServe's Service has the first one as its port 80, which is what
routes lead to, and another one with its own number. By h2c a mesh knows HTTP/2 without TLS.
*/}}
{{- define "gptj.ports" -}}
{{- $ports := list (dict "name" (include "gptj.portName" .) "containerPort" (include "gptj.port" . | int) "protocol" "TCP") -}}
{{- if eq .Values.protocol "grpc" -}}
{{- $ports = prepend $ports (dict "name" "h2c" "containerPort" (include "gptj.grpcPort" . | int) "protocol" "TCP") -}}
{{- end -}}
{{- toJson $ports -}}
{{- end }}

{{/* The port's name in the running pod, by which a scrape finds it. Knative gives it one of its own. */}}
{{- define "gptj.scrapePortName" -}}
{{- if eq .Values.deploymentMode "Knative" -}}user-port{{- else -}}{{ include "gptj.portName" . }}{{- end -}}
{{- end }}

{{/* The httpGet of a probe. Call: dict "root" . "path" PATH. A kubelet does not check certificates. */}}
{{- define "gptj.httpGet" -}}
path: {{ .path }}
port: {{ include "gptj.port" .root }}
{{- if .root.Values.tls.existingSecret }}
scheme: HTTPS
{{- end }}
{{- end }}

{{- define "gptj.apiKeyFolder" -}}/etc/gptj-predictor/api-keys{{- end }}
{{- define "gptj.tlsFolder" -}}/etc/gptj-predictor/tls{{- end }}

{{/*
Volumes of the Secrets: whole folders, because a file mounted with subPath never changes. Call: dict
"root" . "tls" LIST of the files that are needed. A caller needs no private key.
*/}}
{{- define "gptj.accessVolumes" -}}
{{- with .root.Values.apiKeys }}
{{- if .existingSecret }}
- name: api-keys
  secret:
    secretName: {{ .existingSecret | quote }}
    items:
      - {key: {{ .key | quote }}, path: keys}
{{- end }}
{{- end }}
{{- if .root.Values.tls.existingSecret }}
- name: tls
  secret:
    secretName: {{ .root.Values.tls.existingSecret | quote }}
    items:
      {{- range .tls }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}
{{- end }}

{{- define "gptj.accessVolumeMounts" -}}
{{- if .Values.apiKeys.existingSecret }}
- name: api-keys
  mountPath: {{ include "gptj.apiKeyFolder" . }}
  readOnly: true
{{- end }}
{{- if .Values.tls.existingSecret }}
- name: tls
  mountPath: {{ include "gptj.tlsFolder" . }}
  readOnly: true
{{- end }}
{{- end }}

{{/*
The networks whose x-forwarded-for is believed, a JSON list. In Knative mode a request passes the
ingress, perhaps the activator, and the queue proxy in the pod itself. All of them have private
addresses.
*/}}
{{- define "gptj.trustedProxies" -}}
{{- if not (kindIs "invalid" .Values.trustedProxies) -}}
{{- toJson .Values.trustedProxies -}}
{{- else if eq .Values.deploymentMode "Knative" -}}
{{- list "127.0.0.0/8" "::1/128" "10.0.0.0/8" "172.16.0.0/12" "192.168.0.0/16" "100.64.0.0/10" "fc00::/7" | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end }}
