{{/* Where Redis is: the one place that our processes and KEDA's triggers are told from. YAML. */}}
{{- define "serinette.redis" -}}
{{- $own := .Values.valkey.enabled -}}
{{- $name := printf "%s-valkey" (include "serinette.fullname" .) -}}
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
  value: {{ printf "%s://%s:%d/%d%s" (ternary "rediss" "redis" $redis.tls) $redis.host (int $redis.port) (int $redis.db) (ternary "?ssl_ca_certs=/etc/serinette/redis/ca.crt" "" (ne $redis.caSecret "")) }}
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

{{/* Metadata of a KEDA trigger, but for what it reads. */}}
{{- define "serinette.redisTrigger" -}}
{{- $redis := include "serinette.redis" . | fromYaml -}}
address: {{ printf "%s:%d" $redis.host (int $redis.port) }}
databaseIndex: {{ printf "%d" (int $redis.db) | quote }}
{{- if and $redis.tls (not $redis.caSecret) }}
enableTLS: "true"
{{- end }}
{{- end }}

{{/* Which TriggerAuthentication those triggers need; empty: none. */}}
{{- define "serinette.redisAuthentication" -}}
{{- $redis := include "serinette.redis" . | fromYaml -}}
{{- if or $redis.secret $redis.caSecret }}{{ include "serinette.fullname" . }}-redis{{ end -}}
{{- end }}
