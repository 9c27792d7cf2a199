{{/* Whether the controller calls the API server. */}}
{{- define "serinette.asksCluster" -}}
{{- if or .Values.cluster.explain .Values.containers.enabled }}yes{{ end -}}
{{- end }}

{{/* The workers of this copy. Other charts of an umbrella have its instance, too, and may have such a component. */}}
{{- define "serinette.workerSelector" -}}
{{- $labels := list -}}
{{- range $name, $value := include "serinette.selector" (list . "worker") | fromYaml -}}
{{- $labels = append $labels (printf "%s=%s" $name $value) -}}
{{- end -}}
{{- join "," $labels -}}
{{- end }}

{{/* What the controller needs to read the cluster (controller/): settings, and a token that no other component has. */}}
{{- define "serinette.clusterEnv" -}}
{{- if .Values.cluster.explain }}
- {name: SERINETTE_CLUSTER_NAMESPACE, value: {{ .Release.Namespace }}}
- {name: SERINETTE_CLUSTER_SELECTOR, value: {{ include "serinette.workerSelector" . | quote }}}
- {name: SERINETTE_CLUSTER_DEPLOYMENTS, value: {{ include "serinette.workerName" (list . "") | quote }}}
- {name: SERINETTE_CLUSTER_PROTECT, value: {{ .Values.cluster.protect | quote }}}
{{- end }}
{{- end }}

{{/* What the kubelet mounts by default; explicit here, since our pods get no token otherwise. */}}
{{- define "serinette.clusterVolume" -}}
- name: kube-api-access
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}]
{{- end }}

{{- define "serinette.clusterMount" -}}
- {name: kube-api-access, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{/* The annotations that the controller may set on worker pods. */}}
{{- define "serinette.clusterMarks" -}}
['controller.kubernetes.io/pod-deletion-cost', 'cluster-autoscaler.kubernetes.io/safe-to-evict', 'karpenter.sh/do-not-disrupt']
{{- end }}
