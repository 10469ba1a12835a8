{{/* Volumes of a Job's pod: the model cache, which it may write to, /tmp, and extraVolumes. */}}
{{- define "gptj.jobVolumes" -}}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "gptj.claim" . | quote }}
- name: tmp
  emptyDir: {}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where a Job's container mounts them. */}}
{{- define "gptj.jobVolumeMounts" -}}
- name: models
  mountPath: /mnt/models
  {{- with .Values.cache.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
- name: tmp
  mountPath: /tmp
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}
