{{- define "serinette.containersNamespace" -}}
{{ .Values.containers.namespace | default .Release.Namespace }}
{{- end }}

{{/* Owner of their Jobs: a service account that no component uses. They are deleted with it. */}}
{{- define "serinette.containersAccount" -}}
{{ include "serinette.fullname" . }}-container
{{- end }}

{{/* Endpoint of your own store, as their pods reach it; empty: the cloud's. */}}
{{- define "serinette.containersStore" -}}
{{ .Values.containers.storeEndpoint | default .Values.store.endpoint }}
{{- end }}

{{/* A class that the chart creates is cluster-wide, and its value cannot be changed. (list $ "high" 1000) */}}
{{- define "serinette.containersPriorityClass" -}}
{{- $top := index . 0 -}}
{{ printf "%s-%s-%s-%d" $top.Release.Namespace (include "serinette.containersAccount" $top) (index . 1) (index . 2 | int) | replace "--" "-minus-" }}
{{- end }}

{{/* Classes by lane, existing or created. YAML. */}}
{{- define "serinette.containersPriorityClasses" -}}
{{- $classes := .Values.containers.priorityClasses -}}
{{- $named := deepCopy $classes.names -}}
{{- range $lane, $value := $classes.values -}}
{{- $_ := set $named $lane (include "serinette.containersPriorityClass" (list $ $lane $value)) -}}
{{- end -}}
{{- toYaml $named -}}
{{- end }}

{{/* Ceilings by the names of the settings. (list ceilings) */}}
{{- define "serinette.containersCeilings" -}}
{{- $most := index . 0 -}}
{{- dict "gpus" (int $most.gpus) "cpu" $most.cpu "memory_mib" (int64 $most.memoryMib) "disk_mib" (int64 $most.diskMib) "timeout_s" (int $most.timeoutS) | toJson -}}
{{- end }}

{{/* Gateway and controller must agree on these (serinette/settings.py). */}}
{{- define "serinette.containersEnv" -}}
{{- $containers := .Values.containers -}}
{{- if $containers.enabled -}}
{{- $machines := dict -}}
{{- range $name, $machine := $containers.machines -}}
{{- $found := dict -}}
{{- range $value, $setting := dict "nodeSelector" "node_selector" "tolerations" "tolerations" "gpuResource" "gpu_resource" "runtimeClassName" "runtime_class" -}}
{{- with index $machine $value -}}
{{- $_ := set $found $setting . -}}
{{- end -}}
{{- end -}}
{{- $_ := set $machines $name $found -}}
{{- end -}}
{{- $tenants := dict -}}
{{- range $tenant, $most := $containers.tenants -}}
{{- $_ := set $tenants $tenant (include "serinette.containersCeilings" (list (mustMergeOverwrite (deepCopy $containers.ceilings) $most)) | fromJson) -}}
{{- end -}}
- {name: SERINETTE_CONTAINERS, value: "true"}
- {name: SERINETTE_CONTAINERS_NAMESPACE, value: {{ include "serinette.containersNamespace" . | quote }}}
- {name: SERINETTE_CONTAINERS_INSTANCE, value: {{ include "serinette.instance" . | quote }}}
- {name: SERINETTE_CONTAINERS_SERVICE_ACCOUNT, value: {{ include "serinette.containersAccount" . | quote }}}
- {name: SERINETTE_CONTAINERS_STEPS_IMAGE, value: {{ include "serinette.image" (list . "gateway") | quote }}}
- {name: SERINETTE_CONTAINERS_IMAGES, value: {{ toJson $containers.images | quote }}}
- {name: SERINETTE_CONTAINERS_WRITABLE_IMAGES, value: {{ toJson $containers.writableImages | quote }}}
- {name: SERINETTE_CONTAINERS_SECRETS, value: {{ toJson $containers.secrets | quote }}}
- {name: SERINETTE_CONTAINERS_MACHINES, value: {{ toJson $machines | quote }}}
- {name: SERINETTE_CONTAINERS_CEILINGS, value: {{ include "serinette.containersCeilings" (list $containers.ceilings) | quote }}}
- {name: SERINETTE_CONTAINERS_TENANTS, value: {{ toJson $tenants | quote }}}
- {name: SERINETTE_CONTAINERS_MAX_GPUS, value: {{ int $containers.maxGpus | quote }}}
- {name: SERINETTE_CONTAINERS_MAX_JOBS, value: {{ int $containers.maxJobs | quote }}}
- {name: SERINETTE_CONTAINERS_LABELS, value: {{ mustMergeOverwrite (dict "app.kubernetes.io/part-of" "serinette") (deepCopy .Values.commonLabels) $containers.labels | toJson | quote }}}
- {name: SERINETTE_CONTAINERS_PRIORITY_CLASSES, value: {{ include "serinette.containersPriorityClasses" . | fromYaml | toJson | quote }}}
- {name: SERINETTE_CONTAINERS_START_S, value: {{ int $containers.startS | quote }}}
- {name: SERINETTE_CONTAINERS_GRACE_S, value: {{ int $containers.graceS | quote }}}
- {name: SERINETTE_CONTAINERS_LOG_BYTES, value: {{ int64 $containers.logBytes | quote }}}
- {name: SERINETTE_CONTAINERS_OUTPUT_FILES, value: {{ int $containers.outputFiles | quote }}}
- {name: SERINETTE_CONTAINERS_OUTPUT_BYTES, value: {{ int64 $containers.outputBytes | quote }}}
{{- with $containers.storeEndpoint }}
- {name: SERINETTE_CONTAINERS_STORE_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- end -}}
{{- end }}

{{/* A list of strings in CEL. None contains a quotation mark (values.schema.json). */}}
{{- define "serinette.celStrings" -}}
[{{ range $index, $each := . }}{{ if $index }}, {{ end }}'{{ $each }}'{{ end }}]
{{- end }}

{{/* Whether a list allows an image, in CEL: serinette/container.py's allowed_by. (list "container.image" entries) */}}
{{- define "serinette.celAllowed" -}}
{{- $image := index . 0 -}}
{{- $terms := list "false" -}}
{{- range index . 1 -}}
{{- $name := splitList "@" . | first -}}
{{- $tagged := splitList "/" $name | last | contains ":" -}}
{{- if or (hasSuffix "/" .) (not (contains "/" .)) -}}
{{- $terms = append $terms (printf "%s.startsWith('%s/')" $image (trimSuffix "/" .)) -}}
{{- else -}}
{{- $terms = append $terms (printf "%s == '%s'" $image .) -}}
{{- if not (contains "@" .) -}}
{{- $terms = append $terms (printf "%s.startsWith('%s@')" $image .) -}}
{{- if not $tagged -}}
{{- $terms = append $terms (printf "%s.startsWith('%s:')" $image .) -}}
{{- end -}}
{{- else if not $tagged -}}
{{- $terms = append $terms (printf "%s.startsWith('%s:') && %s.endsWith('@%s')" $image $name $image (splitList "@" . | last)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
({{ join " || " $terms }})
{{- end }}
