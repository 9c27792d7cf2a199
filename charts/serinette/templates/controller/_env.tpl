{{- define "serinette.controllerEnv" -}}
{{ include "serinette.poolsEnv" . }}
{{- include "serinette.clusterEnv" . }}
{{- with include "serinette.webhooksEnv" . }}
{{ . }}
{{- end }}
{{- with include "serinette.containersEnv" . }}
{{ . }}
{{- end }}
{{- end }}
