{{/* .Chart.Name is the alias that an umbrella chart gives to a copy of this one. */}}
{{- define "serinette.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $short := and (contains $name .Release.Name) (eq .Chart.Name "serinette") -}}
{{- $default := ternary .Release.Name (printf "%s-%s" .Release.Name $name) $short -}}
{{- .Values.fullnameOverride | default $default | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* The release, and which of its copies where an umbrella chart has several. */}}
{{- define "serinette.instance" -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (eq .Chart.Name "serinette") | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* Selector of a component's pods. (list $ "gateway") */}}
{{- define "serinette.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: serinette
app.kubernetes.io/instance: {{ include "serinette.instance" $top }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of objects. Without a version, which in a pod's template would drain every GPU at an upgrade of the chart. */}}
{{- define "serinette.labels" -}}
{{- $top := index . 0 -}}
{{ include "serinette.selector" . }}
app.kubernetes.io/part-of: serinette
{{- with $top.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "serinette.objectLabels" -}}
{{- $top := index . 0 -}}
{{ include "serinette.labels" . }}
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* (list $ "gateway"): registry, repository, and digest or tag. */}}
{{- define "serinette.image" -}}
{{- $top := index . 0 -}}
{{- $image := index $top.Values.images (index . 1) -}}
{{- $registry := $top.Values.global.imageRegistry | trimSuffix "/" -}}
{{- if not (or $registry (contains "/" $image.repository)) -}}
{{- fail (printf "\n\nThere is no registry to pull %s from. Build the images and push them to yours:\n\n    make release REGISTRY=registry.example.com/you\n\nand name it to the chart: --set global.imageRegistry=registry.example.com/you\n" $image.repository) -}}
{{- end -}}
{{- with $registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $top.Chart.AppVersion }}{{ end -}}
{{- end }}

{{/* Whole cores that a worker requests; at least one. */}}
{{- define "serinette.pool.cores" -}}
{{- $cpu := toString (dig "requests" "cpu" "1" .resources) -}}
{{- if hasSuffix "m" $cpu -}}
{{- max 1 (div (trimSuffix "m" $cpu | int) 1000) -}}
{{- else -}}
{{- max 1 (int (float64 $cpu)) -}}
{{- end -}}
{{- end }}

{{/* A pool with its defaults, as YAML. Batch, cores, encoders, slots: the rule of gpu_worker/settings.py (docs/engine.md). (list $ pool) */}}
{{- define "serinette.pool" -}}
{{- $top := index . 0 -}}
{{- $pool := mustMergeOverwrite (deepCopy $top.Values.poolDefaults) (index . 1) -}}
{{- $gpu := or (ne $pool.gpu.resource "") (hasPrefix "cuda" $pool.device) (contains "nvidia" $pool.runtimeClassName) -}}
{{- $resources := default dict $pool.resources -}}
{{- $requests := default dict $resources.requests -}}
{{- if kindIs "invalid" $requests.cpu -}}
{{- $_ := set $requests "cpu" (ternary "16" "1" $gpu) -}}
{{- end -}}
{{- $_ := set $pool "resources" (set $resources "requests" $requests) -}}
{{- if kindIs "invalid" $pool.maxBatch -}}
{{- $_ := set $pool "maxBatch" (ternary 8 1 $gpu) -}}
{{- end -}}
{{- $encoders := ternary (include "serinette.pool.cores" $pool | int) 1 $gpu -}}
{{- $_ := set $pool "encoders" (min 256 $encoders) -}}
{{- if kindIs "invalid" $pool.slots -}}
{{- $_ := set $pool "slots" (min 64 (add (mul 2 (int $pool.maxBatch)) (div (mul 5 (sub $pool.encoders 1)) 4))) -}}
{{- end -}}
{{- toYaml $pool -}}
{{- end }}

{{- define "serinette.workerName" -}}
{{- printf "%s-worker-%s" (include "serinette.fullname" (index . 0)) (index . 1) -}}
{{- end }}
