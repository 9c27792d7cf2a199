{{/* Address of Redis, for our processes and KEDA's triggers alike. YAML. */}}
{{- define "serinette.redis" -}}
{{- $own := .Values.valkey.enabled -}}
{{- $name := printf "%s-valkey" (include "serinette.fullname" .) -}}
sentinel: {{ eq .Values.redis.topology "sentinel" }}
host: {{ ternary (printf "%s.%s.svc" $name .Release.Namespace) .Values.redis.host $own }}
port: {{ ternary 6379 (int .Values.redis.port) $own }}
db: {{ int .Values.redis.db }}
prefix: {{ .Values.redis.prefix | quote }}
tls: {{ .Values.redis.tls.enabled }}
caSecret: {{ .Values.redis.tls.caSecret | quote }}
caKey: {{ .Values.redis.tls.caKey | quote }}
secret: {{ .Values.redis.auth.existingSecret | default (ternary $name "" $own) | quote }}
passwordKey: {{ .Values.redis.auth.passwordKey | quote }}
usernameKey: {{ .Values.redis.auth.usernameKey | quote }}
{{- end }}

{{- define "serinette.redisEnv" -}}
{{- $redis := include "serinette.redis" . | fromYaml -}}
- name: SERINETTE_REDIS_URL
  value: {{ printf "%s://%s/%d%s" (ternary "rediss" "redis" $redis.tls) (ternary "primary" (printf "%s:%d" $redis.host (int $redis.port)) $redis.sentinel) (int $redis.db) (ternary "?ssl_ca_certs=/etc/serinette/redis/ca.crt" "" (ne $redis.caSecret "")) }}
{{- if $redis.sentinel }}
{{- $sentinel := .Values.redis.sentinel }}
- name: SERINETTE_REDIS_SENTINELS
  value: {{ join "," $sentinel.addresses | quote }}
- name: SERINETTE_REDIS_PRIMARY
  value: {{ $sentinel.primary | quote }}
{{- with $sentinel.auth }}
{{- if and .existingSecret .usernameKey }}
- name: SERINETTE_REDIS_SENTINEL_USERNAME
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .usernameKey }}}}
{{- end }}
{{- if .existingSecret }}
- name: SERINETTE_REDIS_SENTINEL_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .existingSecret }}, key: {{ .passwordKey }}}}
{{- end }}
{{- end }}
{{- end }}
- name: RQ_KEY_PREFIX
  value: {{ $redis.prefix | quote }}
{{- if and $redis.secret $redis.usernameKey }}
- name: SERINETTE_REDIS_USERNAME
  valueFrom: {secretKeyRef: {name: {{ $redis.secret }}, key: {{ $redis.usernameKey }}}}
{{- end }}
{{- if $redis.secret }}
- name: SERINETTE_REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $redis.secret }}, key: {{ $redis.passwordKey }}}}
{{- end }}
{{- end }}

{{/* Metadata of a KEDA trigger, without what it reads. */}}
{{- define "serinette.redisTrigger" -}}
{{- $redis := include "serinette.redis" . | fromYaml -}}
{{- if $redis.sentinel }}
addresses: {{ join "," .Values.redis.sentinel.addresses | quote }}
sentinelMaster: {{ .Values.redis.sentinel.primary | quote }}
{{- else }}
address: {{ printf "%s:%d" $redis.host (int $redis.port) }}
{{- end }}
databaseIndex: {{ printf "%d" (int $redis.db) | quote }}
{{- if and $redis.tls (not $redis.caSecret) }}
enableTLS: "true"
{{- end }}
{{- end }}

{{/* TriggerAuthentication of those triggers; empty: none. */}}
{{- define "serinette.redisAuthentication" -}}
{{- $redis := include "serinette.redis" . | fromYaml -}}
{{- if or $redis.secret $redis.caSecret (and $redis.sentinel .Values.redis.sentinel.auth.existingSecret) }}{{ include "serinette.fullname" . }}-redis{{ end -}}
{{- end }}
