{{/* A claim of a StatefulSet. (list persistence) */}}
{{- define "serinette.dataVolume" -}}
persistentVolumeClaimRetentionPolicy: {whenDeleted: {{ .onUninstall }}, whenScaled: Retain}
volumeClaimTemplates:
  - apiVersion: v1
    kind: PersistentVolumeClaim
    metadata: {name: data}
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .storageClass }}
      storageClassName: {{ . }}
      {{- end }}
      resources:
        requests: {storage: {{ .size }}}
{{- end }}

{{/* The value that the chart's Secret already has under a key, else a new one; in base64. (list $ secret key new) */}}
{{- define "serinette.kept" -}}
{{- $top := index . 0 -}}
{{- $old := lookup "v1" "Secret" $top.Release.Namespace (index . 1) | default dict -}}
{{- get ($old.data | default dict) (index . 2) | default (index . 3 | b64enc) -}}
{{- end }}
