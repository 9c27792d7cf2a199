{{- define "serinette.gatewayEnv" -}}
{{- $gateway := .Values.gateway -}}
- {name: SERINETTE_HOST, value: "0.0.0.0"}
{{- /* Inside a pod everything is beyond loopback. Keys are asked for with SERINETTE_AUTH, in gateway.extraEnv. */}}
- {name: SERINETTE_ALLOW_ANYONE, value: "true"}
- {name: SERINETTE_PORT, value: "8019"}
{{ include "serinette.poolsEnv" . }}
- {name: SERINETTE_JOB_TIMEOUT_S, value: {{ int $gateway.jobTimeoutS | quote }}}
- {name: SERINETTE_MAX_ATTEMPTS, value: {{ int $gateway.maxAttempts | quote }}}
- {name: SERINETTE_MAX_BODY_BYTES, value: {{ int64 $gateway.maxBodyBytes | quote }}}
- {name: SERINETTE_MAX_UPLOAD_BYTES, value: {{ int64 $gateway.maxUploadBytes | quote }}}
- {name: SERINETTE_MAX_UPLOAD_DURATION_S, value: {{ $gateway.maxUploadDurationS | quote }}}
- {name: SERINETTE_MAX_WAIT_S, value: {{ $gateway.maxWaitS | quote }}}
- {name: SERINETTE_PRESIGN_S, value: {{ int $gateway.presignS | quote }}}
- {name: SERINETTE_DRAIN_TIMEOUT_S, value: {{ int $gateway.drainTimeoutS | quote }}}
- {name: SERINETTE_CORS_ORIGINS, value: {{ toJson $gateway.corsOrigins | quote }}}
{{- end }}
