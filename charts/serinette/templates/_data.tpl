{{/* The volume `data` of a StatefulSet's pod, unless the StatefulSet claims it. */}}
{{- define "serinette.dataPodVolume" -}}
{{- if .existingClaim }}
- name: data
  persistentVolumeClaim: {claimName: {{ .existingClaim }}}
{{- else if not .enabled }}
- name: data
  emptyDir: {sizeLimit: {{ .size }}}
{{- end }}
{{- end }}

{{/* The claim of a StatefulSet, if it makes one. */}}
{{- define "serinette.dataVolume" -}}
{{- if and .enabled (not .existingClaim) -}}
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
      {{- with .volumeName }}
      volumeName: {{ . }}
      {{- end }}
      resources:
        requests: {storage: {{ .size }}}
{{- end -}}
{{- end }}

{{/* The value that the chart's Secret already has under a key, else a new one; in base64. (list $ secret key new) */}}
{{- define "serinette.kept" -}}
{{- $top := index . 0 -}}
{{- $old := lookup "v1" "Secret" $top.Release.Namespace (index . 1) | default dict -}}
{{- get ($old.data | default dict) (index . 2) | default (index . 3 | b64enc) -}}
{{- end }}
