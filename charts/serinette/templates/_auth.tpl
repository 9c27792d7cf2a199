{{/* Secret with the file of declared keys; empty: none. */}}
{{- define "serinette.keysSecret" -}}
{{- if .Values.auth.enabled -}}
{{- if .Values.auth.existingSecret -}}
{{ .Values.auth.existingSecret }}
{{- else if or .Values.auth.keys .Values.auth.tenants (not .Values.test.existingSecret) -}}
{{ include "serinette.fullname" . }}-keys
{{- end -}}
{{- end -}}
{{- end }}

{{/* Secret with the API key of `helm test`; empty: it needs none. */}}
{{- define "serinette.testSecret" -}}
{{- if .Values.auth.enabled -}}
{{ .Values.test.existingSecret | default (printf "%s-test" (include "serinette.fullname" .)) }}
{{- end -}}
{{- end }}
