"""The cluster itself, its GPUs and storage classes, and a release's own pods: which do not run, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator

from serinette.doctor.cluster import ClusterSeen, Object
from serinette.doctor.findings import Finding, bad, first_of, judge_clock, ok, unknown, version_of, warning
from serinette.doctor.keda import conditions_of

LEAST_KUBERNETES = (1, 30)
# CUDA of the torch that workers are built with (gpu_worker/Dockerfile), and its oldest driver
# (CUDA Toolkit release notes, table of minor-version compatibility).
TORCH_CUDA, LEAST_DRIVER = 13, 580
_GPU = re.compile(r"^[\w.-]+/(gpu|gpu\.shared|mig-.+)$")
_DRIVER_LABELS = ("nvidia.com/cuda.driver-version.major", "nvidia.com/cuda.driver.major")  # of GPU feature discovery
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"

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
    """Reached, recent, in time."""
    there = f"context {seen.context}, {seen.server}, namespace {seen.place.namespace}"
    remedy = "name a context (`kubectl config get-contexts`, --context), renew its login; or leave the cluster out "
    gone = (seen.trouble, bad, f"{seen.context or 'cluster'}: {seen.trouble}", f"{remedy}(--no-cluster)")
    yield first_of("cluster", "reachable", gone, otherwise=there)
    if seen.trouble:
        return
    words = f"Kubernetes {seen.version}"
    old = (() < version_of(seen.version) < LEAST_KUBERNETES, bad, words, "1.30 or later is needed")
    yield first_of("cluster", "version", old, otherwise=words)
    yield judge_clock("the API server", seen.ahead_s, 1.0 + seen.clock_within_s)
    for name, answer in seen.answers.items():
        if answer.trouble:
            remedy = f"to have them looked at, ask for a role that may read {name}"
            yield unknown("cluster", name, answer.trouble, remedy)


def judge_gpus(seen: ClusterSeen) -> Iterator[Finding]:
    """What GPUs there are, and whether their driver is new enough."""
    if seen["nodes"].trouble:
        return
    wanted = {name for each in seen["deployments"].items for name in _gpus_of(each["spec"]["template"]["spec"])}
    nodes = seen["nodes"].items
    offered = {name for node in nodes for name in _capacity(node) if _GPU.match(name)}
    for resource in sorted(offered | wanted):
        count, total = sum(resource in _capacity(node) for node in nodes), _allocatable(seen, resource)
        none = f"a pool asks for {resource}, and no node offers it"
        add = "add nodes that have it, install the vendor's device plugin, or correct the pool's gpu.resource; "
        broken = f"{count} nodes have {resource}, and none is allocatable: broken devices?"
        look = "kubectl -n kube-system logs -l name=nvidia-device-plugin-ds; look for XID errors (dmesg)"
        yield first_of(
            "gpu",
            resource,
            (not count, bad, none, f"{add}`kubectl describe nodes | grep {resource}`"),
            (not total, bad, broken, look),
            otherwise=f"{count} nodes, {total} allocatable",
        )
    if offered:
        yield _drivers([node for node in nodes if offered & set(_capacity(node))])
    elif not wanted:
        message = "no node has a GPU; the chart's default pool generates on CPUs, slowly"
        remedy = "for GPUs: nodes with one, their driver, and the vendor's device plugin"
        yield first_of("gpu", "nodes", (not seen.installed, warning, message, remedy), otherwise=message)


def _drivers(nodes: list[Object]) -> Finding:
    """Against torch's CUDA."""
    majors: dict[str, int] = {}
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        if (major := str(next((labels[name] for name in _DRIVER_LABELS if name in labels), ""))).isdecimal():
            majors[node["metadata"]["name"]] = int(major)
    old = sorted(name for name, major in majors.items() if major < LEAST_DRIVER)
    least, needed = min(majors.values(), default=0), f"torch's CUDA {TORCH_CUDA} needs {LEAST_DRIVER} or later"
    see = f"`nvidia-smi` on a node must show a driver of {LEAST_DRIVER} or later"
    renew = "renew the driver there, or build the worker with a torch for an older CUDA"
    return first_of(
        "gpu",
        "driver",
        (not majors, unknown, "no node reports its driver (GPU feature discovery would)", see),
        (old, bad, f"driver {least} on {', '.join(old[:5])}; {needed}", renew),
        otherwise=f"{least} or later on {len(majors)} nodes, enough for CUDA {TORCH_CUDA}",
    )


def _capacity(node: Object) -> Object:
    return node.get("status", {}).get("capacity") or {}


def _allocatable(seen: ClusterSeen, resource: str) -> int:
    return sum(int(node.get("status", {}).get("allocatable", {}).get(resource, 0)) for node in seen["nodes"].items)


def _gpus_of(pod: Object) -> set[str]:
    """The GPU resources that a pod's spec asks for."""
    limits = [container.get("resources", {}).get("limits") or {} for container in pod.get("containers", [])]
    return {name for each in limits for name in each if _GPU.match(name)}


def judge_storage(seen: ClusterSeen) -> Iterator[Finding]:
    """A class for what the chart claims."""
    for claim in seen["persistentvolumeclaims"].items:
        if claim.get("status", {}).get("phase") == "Pending":
            name, wanted = claim["metadata"]["name"], claim["spec"].get("storageClassName") or "the default class"
            events = [each for each in seen["events"].items if each.get("involvedObject", {}).get("name") == name]
            why = f": {events[-1].get('message', '')}" if events else ""
            remedy = "name a class that exists (`kubectl get storageclass`): valkey.persistence.storageClass, "
            remedy += "seaweedfs.persistence.storageClass, or the pool's cache.storageClass"
            yield bad("storage", "claims", f"{name} waits for {wanted}{why}", remedy)
    if seen["storageclasses"].trouble:
        return
    classes = {
        each["metadata"]["name"]: each["metadata"].get("annotations") or {} for each in seen["storageclasses"].items
    }
    default = next((name for name, annotations in classes.items() if annotations.get(_DEFAULT_CLASS) == "true"), None)
    message = f"there is no default StorageClass ({', '.join(classes) or 'none at all'})"
    remedy = "name one in valkey.persistence.storageClass and seaweedfs.persistence.storageClass, or use a Redis "
    missing = (not default, warning, message, f"{remedy}and a store of your own")
    yield first_of("storage", "class", missing, otherwise=f"{default} is the default class")


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
        down = (component != "worker" and wanted and not ready, bad, f"none of {wanted} is ready", remedy)
        words = f"{ready} of {wanted} {'workers ' if component == 'worker' else ''}ready"
        yield first_of("pods", name, down, otherwise=words)


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
    name, wanted = pod["metadata"]["name"], sorted(_gpus_of(pod["spec"]))
    if not any(resource in message for resource in wanted):
        remedy = "give nodes what it asks for, or ask for less (resources, nodeSelector, tolerations)"
        return bad("pods", name, f"no node takes it: {message}", remedy)
    counts = ", ".join(f"{_allocatable(seen, resource)} {resource}" for resource in wanted)
    exist = f"; the cluster has {counts} allocatable in all" if seen["nodes"].found else ""
    remedy = "wait until one is free, add nodes, or lower the pool's max to what there is"
    return warning("pods", name, f"waits for a free GPU ({message}){exist}", remedy)
