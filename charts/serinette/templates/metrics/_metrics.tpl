{{- define "serinette.metricsEnv" -}}
{{- if .Values.metrics.enabled -}}
- {name: SERINETTE_METRICS_HOST, value: "0.0.0.0"}
- {name: SERINETTE_METRICS_PORT, value: {{ int .Values.metrics.port | quote }}}
{{- end -}}
{{- end }}

{{- define "serinette.metricsPort" -}}
{{- if .Values.metrics.enabled -}}
- {name: metrics, containerPort: {{ int .Values.metrics.port }}, protocol: TCP}
{{- end -}}
{{- end }}

{{/* Allowed readers, as a rule of a NetworkPolicy. */}}
{{- define "serinette.metricsIngress" -}}
{{- if .Values.metrics.enabled -}}
- ports: [{port: {{ int .Values.metrics.port }}, protocol: TCP}]
  from:
    {{- if .Values.metrics.namespace }}
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: {{ .Values.metrics.namespace }}}
    {{- else }}
    - namespaceSelector: {}
    {{- end }}
{{- end -}}
{{- end }}
