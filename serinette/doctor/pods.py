"""The cluster itself, and a release's own pods: which do not run, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator

from serinette.doctor.cluster import ClusterSeen, Object
from serinette.doctor.findings import Finding, bad, first_of, ok, unknown, warning
from serinette.doctor.keda import conditions_of

_GPU = re.compile(r"^[\w.-]+/(gpu|gpu\.shared|mig-.+)$")

# Reasons of a container that waits, and what to do. Kubernetes: pkg/kubelet/images and container.
_PULL = "correct global.imageRegistry, the tag or digest, and global.imagePullSecrets"
_WAITING = {
    "ImagePullBackOff": _PULL,
    "ErrImagePull": _PULL,
    "InvalidImageName": "correct global.imageRegistry and images.*",
    "CreateContainerConfigError": "a Secret or ConfigMap that it names is missing: make it, in this namespace",
    "CrashLoopBackOff": "kubectl logs POD --previous",
    "RunContainerError": "kubectl describe pod POD",
}


def judge_cluster(seen: ClusterSeen) -> Iterator[Finding]:
    """Whether it was reached, and what it did not answer."""
    there = f"context {seen.context}, {seen.server}, Kubernetes {seen.version}, namespace {seen.place.namespace}"
    remedy = "name a context (`kubectl config get-contexts`, --context), renew its login; or leave the cluster out "
    gone = (seen.trouble, bad, f"{seen.context or 'cluster'}: {seen.trouble}", f"{remedy}(--no-cluster)")
    yield first_of("cluster", "reachable", gone, otherwise=there)
    for name, answer in seen.answers.items():
        if answer.trouble:
            remedy = f"to have them looked at, ask for a role that may read {name}"
            yield unknown("cluster", name, answer.trouble, remedy)


def judge_pods(seen: ClusterSeen) -> Iterator[Finding]:
    """Each workload, and each pod that is not running."""
    if seen["deployments"].trouble:
        return
    if not seen.installed:
        yield ok("pods", "release", f"nothing of ours is in namespace {seen.place.namespace} yet")
        return
    for pod in seen["pods"].items:
        yield from _pod(seen, pod)
    for workload in [*seen["deployments"].items, *seen["statefulsets"].items]:
        name = workload["metadata"]["name"]
        component = workload["metadata"]["labels"].get("app.kubernetes.io/component")
        wanted = int(workload["spec"].get("replicas") or 0)
        ready = int(workload.get("status", {}).get("readyReplicas") or 0)
        remedy = f"kubectl -n {seen.place.namespace} describe pods -l app.kubernetes.io/component={component}"
        refused = conditions_of(workload).get("ReplicaFailure") or {"status": "False"}
        message = f"the cluster refuses its pods: {refused.get('message', '')}"
        grant = "raise the quota, make the class that it names, or give the namespace the Pod Security that it needs"
        down = (component != "worker" and wanted and not ready, bad, f"none of {wanted} is ready", remedy)
        words = f"{ready} of {wanted} {'workers ' if component == 'worker' else ''}ready"
        yield first_of("pods", name, (refused["status"] == "True", bad, message, grant), down, otherwise=words)


def _pod(seen: ClusterSeen, pod: Object) -> Iterator[Finding]:
    """Why a pod does not run; nothing when it does."""
    name = pod["metadata"]["name"]
    scheduled = conditions_of(pod).get("PodScheduled")
    if scheduled and scheduled["status"] == "False":
        yield _unscheduled(seen, pod, str(scheduled.get("message", "")))
        return
    for container in pod.get("status", {}).get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if (reason := waiting.get("reason")) in _WAITING:
            message = f"{reason}: {waiting.get('message', '')}".rstrip(": ")
            yield bad("pods", name, message, _WAITING[reason].replace("POD", f"-n {seen.place.namespace} {name}"))
            return


def _unscheduled(seen: ClusterSeen, pod: Object, message: str) -> Finding:
    """A pod without a node: for a GPU, with how many there are."""
    name = pod["metadata"]["name"]
    limits = [each.get("resources", {}).get("limits") or {} for each in pod["spec"].get("containers", [])]
    wanted = sorted({resource for each in limits for resource in each if _GPU.match(resource)})
    if not any(resource in message for resource in wanted):
        remedy = "give nodes what it asks for, or ask for less (resources, nodeSelector, tolerations, storageClass)"
        return bad("pods", name, f"no node takes it: {message}", remedy)
    offered = [node.get("status", {}).get("allocatable", {}) for node in seen["nodes"].items]
    counts = ", ".join(f"{sum(int(node.get(resource, 0)) for node in offered)} {resource}" for resource in wanted)
    exist = f"; the cluster has {counts} allocatable in all" if seen["nodes"].found else ""
    remedy = (
        "wait until one is free, add nodes that have it and its device plugin, or lower the pool's max to what is there"
    )
    return warning("pods", name, f"waits for a free GPU ({message}){exist}", remedy)
