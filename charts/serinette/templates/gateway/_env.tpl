{{/* Path prefix of the Ingress or the HTTPRoute; empty: none. */}}
{{- define "serinette.rootPath" -}}
{{- $gateway := .Values.gateway -}}
{{- $path := ternary $gateway.ingress.path (ternary $gateway.httpRoute.path "/" $gateway.httpRoute.enabled) $gateway.ingress.enabled -}}
{{- trimSuffix "/" $path -}}
{{- end }}

{{- define "serinette.gatewayEnv" -}}
{{- $gateway := .Values.gateway -}}
- {name: SERINETTE_HOST, value: "0.0.0.0"}
{{- /* A pod listens beyond loopback, so access without keys must be allowed explicitly. */}}
- {name: {{ ternary "SERINETTE_AUTH" "SERINETTE_ALLOW_ANYONE" .Values.auth.enabled }}, value: "true"}
{{- if include "serinette.keysSecret" . }}
- {name: SERINETTE_KEYS_FILE, value: {{ printf "/etc/serinette/keys/%s" .Values.auth.secretKey | quote }}}
{{- end }}
{{- if .Values.auth.keyInPath }}
- {name: SERINETTE_KEY_IN_PATH, value: "true"}
{{- end }}
- {name: SERINETTE_PORT, value: "8019"}
{{- with include "serinette.rootPath" . }}
- {name: SERINETTE_ROOT_PATH, value: {{ . | quote }}}
{{- end }}
{{ include "serinette.poolsEnv" . }}
{{- with include "serinette.webhooksEnv" . }}
{{ . }}
{{- end }}
{{- with include "serinette.containersEnv" . }}
{{ . }}
{{- end }}
- {name: SERINETTE_JOB_TIMEOUT_S, value: {{ int $gateway.jobTimeoutS | quote }}}
- {name: SERINETTE_MAX_ATTEMPTS, value: {{ int $gateway.maxAttempts | quote }}}
- {name: SERINETTE_DURABILITY, value: {{ $gateway.durability }}}
- {name: SERINETTE_MAX_BODY_BYTES, value: {{ int64 $gateway.maxBodyBytes | quote }}}
- {name: SERINETTE_MAX_UPLOAD_BYTES, value: {{ int64 $gateway.maxUploadBytes | quote }}}
- {name: SERINETTE_MAX_UPLOAD_DURATION_S, value: {{ $gateway.maxUploadDurationS | quote }}}
- {name: SERINETTE_GENERATE_MUSIC_WAITS, value: {{ $gateway.generateMusicWaits | quote }}}
- {name: SERINETTE_MAX_WAIT_S, value: {{ $gateway.maxWaitS | quote }}}
- {name: SERINETTE_PRESIGN_S, value: {{ int $gateway.presignS | quote }}}
- {name: SERINETTE_DRAIN_TIMEOUT_S, value: {{ int $gateway.drainTimeoutS | quote }}}
- {name: SERINETTE_CORS_ORIGINS, value: {{ toJson $gateway.corsOrigins | quote }}}
{{- end }}
