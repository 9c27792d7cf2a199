"""What is said of a release's own pods: which are not there yet, and why."""

from __future__ import annotations

from collections.abc import Iterator

from serinette.doctor.cluster import ClusterSeen, Object
from serinette.doctor.findings import Finding, bad, ok, unknown, warning
from serinette.doctor.nodes import gpus_of

# Reasons of a container that waits, and what to do. Kubernetes: pkg/kubelet/images and container.
_WAITS = {
    "ImagePullBackOff": "correct global.imageRegistry, the tag or digest, and global.imagePullSecrets",
    "ErrImagePull": "correct global.imageRegistry, the tag or digest, and global.imagePullSecrets",
    "InvalidImageName": "correct global.imageRegistry and images.*",
    "CreateContainerConfigError": "a Secret or ConfigMap that it names is missing: make it, in this namespace",
    "CrashLoopBackOff": "kubectl logs POD --previous",
    "RunContainerError": "kubectl describe pod POD",
}


def judge_pods(seen: ClusterSeen) -> list[Finding]:
    """Each workload, and each pod that is not running."""
    if seen.trouble:
        return []
    if seen["deployments"].forbidden:
        remedy = f"ask for a role with list on deployments and pods in {seen.namespace}"
        return [unknown("pods", "release", "we may not list Deployments", remedy)]
    if not seen.installed:
        return [ok("pods", "release", f"nothing of ours is in namespace {seen.namespace} yet")]
    findings = [finding for pod in seen["pods"].items if (finding := _pod(seen, pod))]
    for workload in [*seen["deployments"].items, *seen["statefulsets"].items]:
        name, component = (
            workload["metadata"]["name"],
            workload["metadata"]["labels"].get("app.kubernetes.io/component"),
        )
        status = workload.get("status", {})
        wanted, ready = int(workload["spec"].get("replicas") or 0), int(status.get("readyReplicas") or 0)
        if component != "worker" and wanted and not ready:
            remedy = f"kubectl -n {seen.namespace} describe pods -l app.kubernetes.io/component={component}"
            findings.append(bad("pods", name, f"none of {wanted} is ready", remedy))
        elif component == "worker":
            findings.append(ok("pods", name, f"{ready} of {wanted} workers ready"))
        else:
            findings.append(ok("pods", name, f"{ready} of {wanted} ready"))
    return findings


def _pod(seen: ClusterSeen, pod: Object) -> Finding | None:
    """Why a pod does not run; None when it does."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _unplaced(seen, pod, str(condition.get("message", "")))
    for container in status.get("containerStatuses") or []:
        if (waits := (container.get("state") or {}).get("waiting") or {}) and waits.get("reason") in _WAITS:
            told = f"{waits['reason']}: {waits.get('message', '')}".rstrip(": ")
            return bad("pods", name, told, _WAITS[waits["reason"]].replace("POD", f"-n {seen.namespace} {name}"))
    return None


def _unplaced(seen: ClusterSeen, pod: Object, message: str) -> Finding:
    """A pod without a node: for a GPU, with how many there are."""
    name, wanted = pod["metadata"]["name"], sorted(gpus_of(pod["spec"]))
    if not wanted or not any(resource in message for resource in wanted):
        remedy = "give nodes what it asks for, or ask for less (resources, nodeSelector, tolerations)"
        return bad("pods", name, f"no node takes it: {message}", remedy)
    counts = ", ".join(f"{count} {resource}" for resource, count in _gpus(seen, wanted))
    exist = f"; the cluster has {counts} allocatable in all" if counts else ""
    remedy = "wait until one is free, add nodes, or lower the pool's max to what there is"
    return warning("pods", name, f"waits for a free GPU ({message}){exist}", remedy)


def _gpus(seen: ClusterSeen, wanted: list[str]) -> Iterator[tuple[str, int]]:
    if seen["nodes"].found:
        for resource in wanted:
            yield (
                resource,
                sum(
                    int(node.get("status", {}).get("allocatable", {}).get(resource, 0)) for node in seen["nodes"].items
                ),
            )
