{{/* Environment entries, the last of each name: server-side apply refuses duplicates. */}}
{{- define "serinette.env" -}}
{{- $seen := dict -}}
{{- $kept := list -}}
{{- range reverse . -}}
{{- if not (hasKey $seen .name) -}}
{{- $_ := set $seen .name true -}}
{{- $kept = prepend $kept . -}}
{{- end -}}
{{- end -}}
{{- toYaml $kept -}}
{{- end }}

{{/* Shared by our three processes: env and envFrom. (list $ "entries of its own" extraEnv) */}}
{{- define "serinette.environment" -}}
{{- $top := index . 0 -}}
{{- $redis := include "serinette.redisEnv" $top | fromYamlArray -}}
{{- $store := include "serinette.storeEnv" $top | fromYamlArray -}}
{{- $metrics := include "serinette.metricsEnv" $top | fromYamlArray -}}
{{- $loras := include "serinette.lorasEnv" $top | fromYamlArray -}}
env:
  {{- include "serinette.env" (concat $redis $store $metrics $loras (index . 1 | fromYamlArray) $top.Values.extraEnv (index . 2)) | nindent 2 }}
envFrom:
  - configMapRef: {name: {{ include "serinette.fullname" $top }}-settings}
  {{- with (include "serinette.store" $top | fromYaml).secret }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end }}

{{- define "serinette.lorasEnv" -}}
{{- with .Values.loras }}
- {name: SERINETTE_LORAS, value: {{ toJson . | quote }}}
{{- end }}
{{- end }}

{{/* For every pod. enableServiceLinks: a Service named serinette would set SERINETTE_PORT to tcp://... */}}
{{- define "serinette.podSpec" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- with .Values.security.runAsUser }}
  runAsUser: {{ int64 . }}
  {{- end }}
  {{- with .Values.security.runAsGroup }}
  runAsGroup: {{ int64 . }}
  {{- end }}
  {{- with .Values.security.fsGroup }}
  fsGroup: {{ int64 . }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- include "serinette.pullSecrets" . | nindent 2 }}
{{- end }}
{{- end }}

{{/* As objects. An umbrella's global may have names alone. */}}
{{- define "serinette.pullSecrets" -}}
{{- $named := list -}}
{{- range . -}}
{{- $named = append $named (kindIs "string" . | ternary (dict "name" .) .) -}}
{{- end -}}
{{- uniq $named | toYaml -}}
{{- end }}

{{- define "serinette.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Placement of a pod: the values that pools and components have in common. */}}
{{- define "serinette.placement" -}}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "resourceClaims" }}
{{- with index $ $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- range $field := list "runtimeClassName" "priorityClassName" "schedulerName" }}
{{- with index $ $field }}
{{ $field }}: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "serinette.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "serinette.selector" . | nindent 8 }}
{{- end }}

{{- define "serinette.volumes" -}}
{{- $top := index . 0 -}}
- name: tmp
  emptyDir: {{ toJson (index . 1) }}
{{- with $top.Values.redis.tls.caSecret }}
- name: redis-ca
  secret:
    secretName: {{ . }}
    items: [{key: {{ $top.Values.redis.tls.caKey }}, path: ca.crt}]
{{- end }}
{{- end }}

{{- define "serinette.volumeMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.redis.tls.caSecret }}
- {name: redis-ca, mountPath: /etc/serinette/redis, readOnly: true}
{{- end }}
{{- end }}

{{/* Gateway and controller restart at once with new settings, which is cheap. Workers would drain. */}}
{{- define "serinette.settingsChecksum" -}}
checksum/settings: {{ include (print .Template.BasePath "/settings.yaml") . | sha256sum }}
{{- end }}
