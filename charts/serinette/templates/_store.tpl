{{/* The store of the songs. YAML. */}}
{{- define "serinette.store" -}}
{{- $own := .Values.seaweedfs.enabled -}}
{{- $name := printf "%s-seaweedfs" (include "serinette.fullname" .) -}}
url: {{ ternary (printf "s3://%s" .Values.seaweedfs.bucket) .Values.store.url $own | quote }}
endpoint: {{ ternary (printf "http://%s.%s.svc:8333" $name .Release.Namespace) .Values.store.endpoint $own | quote }}
secret: {{ .Values.store.existingSecret | default (ternary $name "" $own) | quote }}
{{- end }}

{{- define "serinette.storeEnv" -}}
{{- $store := include "serinette.store" . | fromYaml -}}
- name: SERINETTE_STORE_URL
  value: {{ $store.url | quote }}
{{- with $store.endpoint }}
- name: SERINETTE_STORE_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with .Values.store.publicEndpoint }}
- name: SERINETTE_STORE_PUBLIC_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- if .Values.seaweedfs.enabled }}
- name: AWS_REGION
  value: us-east-1
{{- end }}
{{- range $name, $value := .Values.store.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* TCP port of a URL. */}}
{{- define "serinette.urlPort" -}}
{{- $url := urlParse . -}}
{{- if regexMatch ":[0-9]+$" $url.host }}{{ regexFind "[0-9]+$" $url.host }}{{ else }}{{ ternary 80 443 (eq $url.scheme "http") }}{{ end -}}
{{- end }}
