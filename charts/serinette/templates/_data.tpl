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

{{/* What a Secret of ours already holds under a key, else a new random word. (list $ secret key) */}}
{{- define "serinette.kept" -}}
{{- $top := index . 0 -}}
{{- $old := lookup "v1" "Secret" $top.Release.Namespace (index . 1) | default dict -}}
{{- get ($old.data | default dict) (index . 2) | default (randAlphaNum 32 | b64enc) -}}
{{- end }}
