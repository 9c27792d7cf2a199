{{/* Time that a worker needs beyond its drain, to return jobs and end slots and engine (gpu_worker/supervisor.py). */}}
{{- define "serinette.worker.leaveS" -}}60{{- end }}

{{/* Time for a running job to finish once its worker drains. */}}
{{- define "serinette.worker.drainS" -}}
{{- max 0 (sub (int .terminationGraceS) (include "serinette.worker.leaveS" . | int)) -}}
{{- end }}

{{/*
Replicas to write; empty: none, and Kubernetes makes one worker, until KEDA looks. keda.startAtMin writes `min` at first, and then what
KEDA made of it. A rollback to the first revision conflicts, with Helm 4, which is why this is no default. (list $ name pool)
extensions/v1beta1 is served by no Kubernetes since 1.22, and known to a helm that renders without a cluster: that of Argo CD.
*/}}
{{- define "serinette.worker.replicas" -}}
{{- $top := index . 0 -}}
{{- $pool := index . 2 -}}
{{- if not $top.Values.keda.enabled -}}
{{- max 1 (int $pool.min) -}}
{{- else if and $top.Values.keda.startAtMin ($top.Capabilities.APIVersions.Has "extensions/v1beta1") -}}
{{- int $pool.min -}}
{{- else if $top.Values.keda.startAtMin -}}
{{- if lookup "apps/v1" "Deployment" $top.Release.Namespace (index . 1) -}}
{{- include "serinette.leftReplicas" . -}}
{{- else -}}
{{- int $pool.min -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
Replicas to write of a Deployment that an autoscaler scales, so that an upgrade leaves as many as there are: a field that Helm wrote and
then leaves out is reset to 1. Empty where there is none, and once another manager than Helm's own server-side apply owns the field: it
stays then, and cannot conflict. (list $ name)
*/}}
{{- define "serinette.leftReplicas" -}}
{{- $live := lookup "apps/v1" "Deployment" (index . 0).Release.Namespace (index . 1) | default dict -}}
{{- $applied := false -}}
{{- $another := false -}}
{{- range dig "metadata" "managedFields" list $live -}}
{{- if and (eq .manager "helm") (eq .operation "Apply") -}}
{{- $applied = true -}}
{{- else if hasKey (dig "fieldsV1" "f:spec" dict .) "f:replicas" -}}
{{- $another = true -}}
{{- end -}}
{{- end -}}
{{- if and $live (not (and $applied $another)) -}}
{{- int (dig "spec" "replicas" 1 $live) -}}
{{- end -}}
{{- end }}

{{/* Services that an uninstall takes away with the workers, which then have nothing to finish for. */}}
{{- define "serinette.ownServicesEnv" -}}
{{- $names := list -}}
{{- if .Values.valkey.enabled -}}
{{- $names = append $names (include "serinette.redis" . | fromYaml).host -}}
{{- end -}}
{{- if .Values.seaweedfs.enabled -}}
{{- $names = append $names (include "serinette.store" . | fromYaml).endpoint -}}
{{- end -}}
{{- with $names }}
- {name: SERINETTE_OWN_SERVICES, value: {{ join "," . | replace "http://" "" | replace ":8333" "" | quote }}}
{{- end }}
{{- end }}

{{- define "serinette.workerEnv" -}}
- {name: SERINETTE_POOL, value: {{ .name | quote }}}
- {name: SERINETTE_SLOTS, value: {{ int .slots | quote }}}
- {name: SERINETTE_ENCODERS, value: {{ int .encoders | quote }}}
- {name: SERINETTE_MAX_BATCH, value: {{ int .maxBatch | quote }}}
- {name: SERINETTE_DRAIN_TIMEOUT_S, value: {{ include "serinette.worker.drainS" . | quote }}}
- {name: SERINETTE_ENGINE_START_TIMEOUT_S, value: {{ int .loadTimeoutS | quote }}}
- {name: SERINETTE_MODEL, value: {{ .model | quote }}}
{{- with .modelName }}
- {name: SERINETTE_MODEL_NAME, value: {{ . | quote }}}
{{- end }}
{{- with .plannerModel }}
- {name: SERINETTE_PLANNER_MODEL, value: {{ . | quote }}}
{{- end }}
{{- with .modelEndpoint }}
- {name: SERINETTE_MODEL_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- if .modelSecret }}
- {name: SERINETTE_MODEL_CREDENTIALS_DIR, value: /etc/serinette/model-store}
{{- end }}
- {name: SERINETTE_DEVICE, value: {{ .device | quote }}}
- {name: SERINETTE_DTYPE, value: {{ .dtype | quote }}}
- {name: SERINETTE_THREADS, value: {{ int .threads | quote }}}
{{/* Left out, the engine decides by the free memory. */ -}}
{{- if not (kindIs "invalid" .cpuOffload) }}
- {name: SERINETTE_CPU_OFFLOAD, value: {{ .cpuOffload | quote }}}
{{- end }}
- {name: SERINETTE_COMPILE, value: {{ .compile | quote }}}
- {name: SERINETTE_SPOOL_MAX_BYTES, value: {{ int64 .spoolMaxBytes | quote }}}
- {name: SERINETTE_WORK_DIR, value: /var/lib/serinette}
{{/* Libraries write to their caches: the root is read-only, so each gets a writable place. */ -}}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /var/lib/serinette/checkpoints/huggingface}
{{- end }}

{{- define "serinette.worker.cache" -}}
{{- $name := index . 0 -}}
{{- $cache := index . 1 -}}
- name: checkpoints
{{- if eq $cache.type "hostPath" }}
  hostPath: {path: {{ $cache.path }}, type: DirectoryOrCreate}
{{- else if eq $cache.type "claim" }}
  persistentVolumeClaim: {claimName: {{ $cache.existingClaim | default $name }}}
{{- else }}
  emptyDir: {sizeLimit: {{ $cache.size }}}
{{- end }}
{{- if eq $cache.type "image" }}
- name: models
  image: {reference: {{ $cache.image }}, pullPolicy: IfNotPresent}
{{- end }}
{{- end }}
