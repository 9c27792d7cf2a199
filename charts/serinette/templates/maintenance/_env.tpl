{{- define "serinette.maintenanceEnv" -}}
{{ include "serinette.poolsEnv" . }}
{{- end }}
