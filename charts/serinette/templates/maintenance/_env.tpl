{{- define "serinette.maintenanceEnv" -}}
{{ include "serinette.poolsEnv" . }}
{{- with include "serinette.webhooksEnv" . }}
{{ . }}
{{- end }}
{{- end }}
