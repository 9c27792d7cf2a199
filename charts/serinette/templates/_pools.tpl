{{/* The pools, for gateway and controller (serinette/pools.py), so that they know them also at zero. */}}
{{- define "serinette.poolsEnv" -}}
{{- $list := list -}}
{{- range .Values.pools -}}
{{- $pool := include "serinette.pool" (list $ .) | fromYaml -}}
{{- $min := int $pool.min -}}
{{- $max := int $pool.max -}}
{{- if not $.Values.keda.enabled -}}
{{- $min = max 1 $min -}}
{{- $max = $min -}}
{{- end -}}
{{- $facts := dict "name" $pool.name "model" $pool.model "model_name" $pool.modelName "min_workers" $min "max_workers" $max "jobs_per_worker" (int $pool.jobsPerWorker) "slots" (int $pool.slots) "max_batch" (int $pool.maxBatch) "gpu_resource" $pool.gpu.resource -}}
{{- if not $pool.spot -}}
{{- $_ := set $facts "longest_s" (include "serinette.worker.drainS" $pool | int) -}}
{{- end -}}
{{- $list = append $list $facts -}}
{{- end -}}
- {name: SERINETTE_POOL, value: {{ .Values.gateway.defaultPool }}}
- name: SERINETTE_POOLS
  value: {{ toJson $list | quote }}
{{- end }}
