{{/* Gateway and controller must agree on these. */}}
{{- define "serinette.webhooksEnv" -}}
{{- $webhooks := .Values.webhooks -}}
{{- if $webhooks.existingSecret -}}
- name: SERINETTE_WEBHOOK_SECRET
  valueFrom: {secretKeyRef: {name: {{ $webhooks.existingSecret }}, key: {{ $webhooks.secretKey }}}}
{{- with $webhooks.tenantsKey }}
- name: SERINETTE_WEBHOOK_SECRETS
  valueFrom: {secretKeyRef: {name: {{ $webhooks.existingSecret }}, key: {{ . }}}}
{{- end }}
{{- with $webhooks.networks }}
- {name: SERINETTE_WEBHOOK_NETWORKS, value: {{ toJson . | quote }}}
{{- end }}
{{- end -}}
{{- end }}

{{/* Allowed targets, as a rule of a NetworkPolicy: public addresses, which the controller checks, too. */}}
{{- define "serinette.webhooksEgress" -}}
{{- if .Values.webhooks.existingSecret -}}
- ports:
    {{- range .Values.webhooks.ports }}
    - {port: {{ int . }}, protocol: TCP}
    {{- end }}
  to:
    - ipBlock:
        cidr: 0.0.0.0/0
        except: [0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16, 224.0.0.0/3]
    - ipBlock:
        cidr: 2000::/3
    {{- range .Values.webhooks.networks }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
{{- end -}}
{{- end }}
