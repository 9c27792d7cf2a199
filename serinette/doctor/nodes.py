"""What is said of the cluster itself, of KEDA, of GPUs and of storage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from serinette.doctor.cluster import ClusterSeen, Object
from serinette.doctor.findings import Finding, bad, judge_clock, ok, unknown, warning
from serinette.doctor.machine import LEAST_DRIVER, TORCH_CUDA

LEAST_KUBERNETES = (1, 30)
LEAST_KEDA = (2, 20)
_GPU = re.compile(r"^[\w.-]+/(gpu|gpu\.shared|mig-.+)$")
_DRIVER_LABELS = ("nvidia.com/cuda.driver-version.major", "nvidia.com/cuda.driver.major")


def judge_cluster(seen: ClusterSeen) -> list[Finding]:
    """Reached, recent, in time."""
    if seen.trouble:
        remedy = "name a context (`kubectl config get-contexts`, --context), renew its login; or leave the cluster out"
        remedy += " (--no-cluster)"
        return [bad("cluster", "reachable", f"{seen.context or 'cluster'}: {seen.trouble}", remedy)]
    findings = [ok("cluster", "reachable", f"context {seen.context}, {seen.server}, namespace {seen.namespace}")]
    version = _numbers(seen.version)
    if version and version < LEAST_KUBERNETES:
        findings.append(bad("cluster", "version", f"Kubernetes {seen.version}", "1.30 or later is needed"))
    else:
        findings.append(ok("cluster", "version", f"Kubernetes {seen.version}"))
    return [*findings, judge_clock("the API server", seen.ahead_s, 1.0 + seen.clock_within_s)]


def judge_keda(seen: ClusterSeen) -> list[Finding]:
    """Its CRDs, its operator, its metrics."""
    if seen.trouble:
        return []
    unused = seen.installed and not seen["scaledobjects"].items
    crds = [seen["scaledobjects crd"], seen["triggerauthentications crd"]]
    if any(crd.forbidden for crd in crds):
        return [
            unknown(
                "keda",
                "installed",
                "we may not read CustomResourceDefinitions",
                _grant("get", "customresourcedefinitions"),
            )
        ]
    if not all(crd.found for crd in crds):
        message = "KEDA's kinds ScaledObject and TriggerAuthentication are not in this cluster"
        remedy = "install KEDA 2.20 or later (helm install keda kedacore/keda -n keda --create-namespace), "
        remedy += "or set keda.enabled=false"
        if unused:
            return [ok("keda", "installed", "not here, and not used: the pools have fixed sizes")]
        return [bad("keda", "installed", message, remedy)]
    served = [{each["name"] for each in crd.body["spec"]["versions"] if each.get("served", True)} for crd in crds]
    versions = set.intersection(*served)
    if "v1alpha1" not in versions:
        return [bad("keda", "installed", "KEDA's kinds are not served as keda.sh/v1alpha1", "install KEDA 2.x")]
    return [ok("keda", "installed", "its kinds are here"), *_operator(seen), _external_metrics(seen)]


def _operator(seen: ClusterSeen) -> list[Finding]:
    answer = seen["keda"]
    if answer.forbidden:
        return [unknown("keda", "operator", "we may not see its namespace", _grant("list", "deployments"))]
    found = [each for each in answer.items if "keda" in each["metadata"]["name"]]
    operators = [each for each in found if each["metadata"]["name"].endswith("operator")]
    if not operators:
        remedy = (
            "name its namespace: --keda-namespace here, keda.namespace in the chart (its NetworkPolicy admits that one)"
        )
        return [bad("keda", "operator", "no keda-operator runs in the namespace where it is looked for", remedy)]
    findings = []
    for each in found:
        name = each["metadata"]["name"]
        if not each.get("status", {}).get("readyReplicas"):
            remedy = f"kubectl -n {each['metadata'].get('namespace', 'keda')} describe deployment {name}"
            findings.append(bad("keda", "operator", f"{name} has no ready pod: nothing is scaled", remedy))
    if not findings:
        findings.append(ok("keda", "operator", f"{', '.join(each['metadata']['name'] for each in found)} ready"))
    version = str(operators[0]["metadata"].get("labels", {}).get("app.kubernetes.io/version", ""))
    if (numbers := _numbers(version)) and numbers < LEAST_KEDA:
        findings.append(
            bad("keda", "version", f"KEDA {version}", "2.20 or later is needed: formulas over several triggers")
        )
    elif version:
        findings.append(ok("keda", "version", f"KEDA {version}"))
    return findings


def _external_metrics(seen: ClusterSeen) -> Finding:
    answer = seen["external metrics"]
    if answer.forbidden:
        return unknown("keda", "metrics", "we may not read APIServices", _grant("get", "apiservices"))
    if not answer.found:
        return bad(
            "keda", "metrics", "no external.metrics.k8s.io is served: pools stay at one worker", "reinstall KEDA"
        )
    service = (answer.body.get("spec") or {}).get("service") or {}
    if "keda" not in str(service.get("name", "")):
        message = f"external.metrics.k8s.io belongs to {service.get('namespace')}/{service.get('name')}, not to KEDA"
        return bad("keda", "metrics", message, "a cluster has one such server: take the other away, or scale by hand")
    for condition in answer.body.get("status", {}).get("conditions", []):
        if condition["type"] == "Available" and condition["status"] != "True":
            remedy = "kubectl -n keda logs deploy/keda-operator-metrics-apiserver; is the API server admitted to it?"
            return bad("keda", "metrics", f"KEDA's metrics cannot be read: {condition.get('message', '')}", remedy)
    return ok("keda", "metrics", "HPA can read its numbers")


def judge_storage(seen: ClusterSeen) -> list[Finding]:
    """A class for what the chart claims."""
    if seen.trouble:
        return []
    answer = seen["storage classes"]
    waiting = [claim for claim in seen["claims"].items if claim.get("status", {}).get("phase") == "Pending"]
    findings = []
    for claim in waiting:
        name, wanted = claim["metadata"]["name"], claim["spec"].get("storageClassName") or "the default class"
        remedy = "name a class that exists (`kubectl get storageclass`): valkey.persistence.storageClass, "
        remedy += "seaweedfs.persistence.storageClass, or the pool's cache.storageClass"
        findings.append(bad("storage", "claims", f"{name} waits for {wanted}{_event_of(seen, name)}", remedy))
    if answer.forbidden:
        return [
            *findings,
            unknown("storage", "class", "we may not list StorageClasses", _grant("list", "storageclasses")),
        ]
    key = "storageclass.kubernetes.io/is-default-class"
    default = [
        each["metadata"]["name"]
        for each in answer.items
        if (each["metadata"].get("annotations") or {}).get(key) == "true"
    ]
    if default:
        return [*findings, ok("storage", "class", f"{default[0]} is the default class")]
    names = ", ".join(each["metadata"]["name"] for each in answer.items) or "none at all"
    remedy = "name one in valkey.persistence.storageClass and seaweedfs.persistence.storageClass, or use a Redis and a "
    remedy += "store of your own"
    return [*findings, warning("storage", "class", f"there is no default StorageClass ({names})", remedy)]


def _event_of(seen: ClusterSeen, name: str) -> str:
    told = [each for each in seen["events"].items if each.get("involvedObject", {}).get("name") == name]
    return f": {told[-1].get('message', '')}" if told else ""


def judge_gpus(seen: ClusterSeen) -> list[Finding]:
    """What GPUs there are, for whom, and whether their driver is new enough."""
    if seen.trouble:
        return []
    answer = seen["nodes"]
    if not answer.found:
        return [unknown("gpu", "nodes", "we may not list nodes", _grant("list", "nodes"))]
    wanted = {resource: pod for each in seen["deployments"].items if (pod := _pod(each)) for resource in gpus_of(pod)}
    offered = {name for node in answer.items for name in node.get("status", {}).get("capacity", {}) if _GPU.match(name)}
    findings = [
        finding
        for resource in sorted(offered | set(wanted))
        for finding in _resource(seen, resource, wanted.get(resource))
    ]
    if not findings:
        message = "no node has a GPU; the chart's default pool generates on CPUs, slowly"
        return (
            [ok("gpu", "nodes", message)]
            if seen.installed
            else [
                warning(
                    "gpu", "nodes", message, "for GPUs: nodes with one, their driver, and the vendor's device plugin"
                )
            ]
        )
    return [*findings, *_drivers([node for node in answer.items if offered & set(node["status"].get("capacity", {}))])]


def _resource(seen: ClusterSeen, resource: str, pod: Object | None) -> list[Finding]:
    nodes = [node for node in seen["nodes"].items if resource in node.get("status", {}).get("capacity", {})]
    if not nodes:
        remedy = (
            "add nodes that have it, install the vendor's device plugin, or correct the pool's gpu.resource; `kubectl "
        )
        remedy += f"describe nodes | grep {resource}`"
        return [bad("gpu", resource, f"a pool asks for {resource}, and no node offers it", remedy)]
    total = sum(_count(node, resource) for node in nodes)
    if not total:
        remedy = "kubectl -n kube-system logs -l name=nvidia-device-plugin-ds; look for XID errors (dmesg)"
        return [
            bad(
                "gpu", resource, f"{len(nodes)} nodes have {resource}, and none is allocatable: broken devices?", remedy
            )
        ]
    used = sum(_asked(pod, resource) for pod in seen["all pods"].items)
    free = f", {max(0, total - used)} free" if seen["all pods"].found else ""
    findings = [ok("gpu", resource, f"{len(nodes)} nodes, {total} allocatable{free}")]
    if pod and not any(_admits(node, pod) for node in nodes):
        why = sorted({reason for node in nodes for reason in _refusals(node, pod)})
        remedy = "set the pool's tolerations and nodeSelector to what those nodes have"
        findings.append(
            bad("gpu", resource, f"no node with {resource} takes the pool's workers: {', '.join(why)}", remedy)
        )
    return findings


def gpus_of(pod: Object) -> set[str]:
    """The GPU resources that a pod asks for."""
    limits = [container.get("resources", {}).get("limits") or {} for container in pod.get("containers", [])]
    return {name for each in limits for name in each if _GPU.match(name)}


def _pod(workload: Object) -> Mapping[str, Any]:
    return dict(workload.get("spec", {}).get("template", {}).get("spec") or {})


def _count(node: Object, resource: str) -> int:
    return int(node.get("status", {}).get("allocatable", {}).get(resource, 0))


def _asked(pod: Object, resource: str) -> int:
    if not pod.get("spec", {}).get("nodeName"):
        return 0
    containers = pod["spec"].get("containers", [])
    return sum(int((each.get("resources", {}).get("limits") or {}).get(resource, 0)) for each in containers)


def _admits(node: Object, pod: Object) -> bool:
    return not _refusals(node, pod)


def _refusals(node: Object, pod: Object) -> Iterable[str]:
    labels = node["metadata"].get("labels") or {}
    found = [
        f"no label {name}={value}"
        for name, value in (pod.get("nodeSelector") or {}).items()
        if labels.get(name) != value
    ]
    tolerations = pod.get("tolerations") or []
    found += [
        f"taint {taint['key']}={taint.get('value', '')}:{taint.get('effect')}"
        for taint in node.get("spec", {}).get("taints") or []
        if taint.get("effect") != "PreferNoSchedule" and not any(_tolerates(each, taint) for each in tolerations)
    ]
    if node.get("spec", {}).get("unschedulable"):
        found.append("cordoned")
    return found


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in {None, "", taint.get("effect")}:
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in {None, "", taint["key"]}
    return bool(toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""))


def _drivers(nodes: Iterable[Object]) -> list[Finding]:
    """Against torch's CUDA, by the labels that GPU feature discovery writes."""
    least, told = LEAST_DRIVER[TORCH_CUDA], {}
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        majors = [labels[name] for name in _DRIVER_LABELS if name in labels]
        if majors and str(majors[0]).isdecimal():
            told[node["metadata"]["name"]] = int(majors[0])
    if not told:
        remedy = (
            f"`nvidia-smi` on a node must show a driver of {least} or later (GPU feature discovery would report it)"
        )
        return [unknown("gpu", "driver", "no node reports its driver", remedy)]
    old = sorted(name for name, major in told.items() if major < least)
    if old:
        message = f"driver {told[old[0]]} on {', '.join(old[:5])}; torch's CUDA {TORCH_CUDA} needs {least} or later"
        return [
            bad("gpu", "driver", message, "renew the driver there, or build the worker with a torch for an older CUDA")
        ]
    return [ok("gpu", "driver", f"{min(told.values())} or later on {len(told)} nodes, enough for CUDA {TORCH_CUDA}")]


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"v?(\d+)\.(\d+)", version)
    numbers = tuple(int(part) for part in found.groups()) if found else ()
    return numbers if any(numbers) else ()  # a build that was not told its version says v0.0.0


def _grant(verb: str, resource: str) -> str:
    return f"to have it checked, ask for a role with {verb} on {resource}"
