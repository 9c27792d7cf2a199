"""KEDA: whether it is at work in a cluster, and whether it reads of each pool what is in Redis."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any

from redis import Redis, RedisError

from serinette.doctor.cluster import Answer, ClusterSeen, Object
from serinette.doctor.findings import Finding, bad, ok, unknown, warning
from serinette.names import Lane
from serinette.settings import SharedSettings, connect_redis

LEAST_KEDA = (2, 20)
_LANES = tuple(lane.value for lane in Lane)
_COUNTS = {b"list": "llen", b"set": "scard", b"zset": "zcard", b"hash": "hlen"}

# Entries of a key in Redis.
Count = Callable[[str], float]


def judge_keda(seen: ClusterSeen) -> Iterator[Finding]:
    """Its kinds, its operator, its metrics."""
    crds = [seen["definition of scaledobjects"], seen["definition of triggerauthentications"]]
    if any(crd.trouble for crd in crds):
        return
    served = [
        {each["name"] for each in crd.body["spec"]["versions"] if each.get("served", True)} for crd in crds if crd.found
    ]
    if len(served) == len(crds) and "v1alpha1" in set.intersection(*served):
        yield ok("keda", "installed", "its kinds are here")
        yield from _operator(seen, seen["deployments of keda"])
        yield from _external_metrics(seen, seen["apiservice of external metrics"])
    elif seen.installed and not seen["scaledobjects"].items:
        yield ok("keda", "installed", "not here, and not used: the pools have fixed sizes")
    else:
        message = (
            "KEDA's kinds ScaledObject and TriggerAuthentication are not served as keda.sh/v1alpha1 in this cluster"
        )
        remedy = "install KEDA 2.20 or later (helm install keda kedacore/keda -n keda --create-namespace), "
        yield bad("keda", "installed", message, f"{remedy}or set keda.enabled=false")


def _log(seen: ClusterSeen, *, metrics: bool) -> str:
    """How to read the log of the operator, or of its metrics server: KEDA's chart and its manifests name it apart."""
    names = [str(each["metadata"]["name"]) for each in seen["deployments of keda"].items]
    ours = [name for name in names if "keda" in name and ("metrics" in name) is metrics and "webhook" not in name]
    default = "keda-operator-metrics-apiserver" if metrics else "keda-operator"
    return f"kubectl -n {seen.keda_namespace} logs deploy/{next(iter(ours), default)}"


def _operator(seen: ClusterSeen, answer: Answer) -> Iterator[Finding]:
    if answer.trouble:
        return
    found = {str(each["metadata"]["name"]): each for each in answer.items if "keda" in each["metadata"]["name"]}
    operator = next((each for name, each in found.items() if name.endswith("operator")), None)
    if operator is None:
        remedy = (
            "name its namespace: --keda-namespace here, keda.namespace in the chart (its NetworkPolicy admits that one)"
        )
        yield bad("keda", "operator", "no keda-operator runs in the namespace where it is looked for", remedy)
        return
    idle = [name for name, each in found.items() if not each.get("status", {}).get("readyReplicas")]
    for name in idle:
        remedy = f"kubectl -n {seen.keda_namespace} describe deployment {name}"
        yield bad("keda", "operator", f"{name} has no ready pod: nothing is scaled", remedy)
    if not idle:
        yield ok("keda", "operator", f"{', '.join(found)} ready")
    version = str(operator["metadata"].get("labels", {}).get("app.kubernetes.io/version", ""))
    if (numbers := version_of(version)) and numbers < LEAST_KEDA:
        remedy = "2.20 or later is needed: formulas over several triggers"
        yield bad("keda", "version", f"KEDA {version}", remedy)
    elif version:
        yield ok("keda", "version", f"KEDA {version}")


def _external_metrics(seen: ClusterSeen, answer: Answer) -> Iterator[Finding]:
    service = (answer.body.get("spec") or {}).get("service") or {}
    available = conditions_of(answer.body).get("Available")
    if answer.trouble:
        return
    if not answer.found:
        message = "no external.metrics.k8s.io is served: pools stay at one worker"
        yield bad("keda", "metrics", message, "reinstall KEDA")
    elif "keda" not in str(service.get("name", "")):
        message = f"external.metrics.k8s.io belongs to {service.get('namespace')}/{service.get('name')}, not to KEDA"
        yield bad("keda", "metrics", message, "a cluster has one such server: take the other away, or scale by hand")
    elif available and available["status"] != "True":
        message = f"KEDA's metrics cannot be read: {available.get('message', '')}"
        yield bad("keda", "metrics", message, f"{_log(seen, metrics=True)}; is the API server admitted to it?")
    else:
        yield ok("keda", "metrics", "HPA can read its numbers")


def judge_scaling(seen: ClusterSeen, count: Count | None) -> Iterator[Finding]:
    """Each ScaledObject: ready, and reading what is in Redis. `count`: of Redis; None: it was not asked."""
    for each in seen["scaledobjects"].items:
        name = str(each["metadata"]["name"])
        yield from _state(seen, each, name)
        if count is None:
            remedy = "give --redis-url (through `kubectl port-forward`), or run the doctor where Redis is reached"
            yield unknown("scaling", name, "KEDA's number is not compared: Redis was not asked", remedy)
        else:
            yield _number(seen, each, name, count)


def _state(seen: ClusterSeen, scaled_object: Object, name: str) -> Iterator[Finding]:
    """What KEDA says of it itself."""
    annotations = scaled_object["metadata"].get("annotations") or {}
    if paused := sorted(key for key in annotations if key.startswith("autoscaling.keda.sh/paused")):
        remedy = f"take the annotation away: kubectl -n {seen.namespace} annotate scaledobject {name} {paused[0]}-"
        yield warning("scaling", name, f"paused by {', '.join(paused)}", remedy)
    if scaled_object["spec"].get("fallback", {}).get("replicas") == 0:
        remedy = "take spec.fallback away: without one a failing trigger freezes the pool, and with it ends it"
        yield bad("scaling", name, "falls back to 0 replicas when Redis cannot be asked", remedy)
    ready = conditions_of(scaled_object).get("Ready")
    if ready is None:
        yield warning("scaling", name, "KEDA has not looked at it yet", _log(seen, metrics=False))
    elif ready["status"] != "True":
        message = f"KEDA says: {ready.get('reason', '')} {ready.get('message', '')}".strip()
        remedy = f"{_log(seen, metrics=False)}: a wrong password, TLS or a NetworkPolicy keeps it from Redis"
        yield bad("scaling", name, message, remedy)
    else:
        yield ok("scaling", name, "KEDA is at work on it")


def _number(seen: ClusterSeen, scaled_object: Object, name: str, count: Count) -> Finding:
    """KEDA's number of workers: never 0 while jobs wait or run, but for those that the brake holds back."""
    try:
        counts = {each["name"]: count(each["metadata"]["listName"]) for each in scaled_object["spec"]["triggers"]}
    except (RedisError, OSError) as error:
        return unknown("scaling", name, f"the keys of its triggers cannot be counted: {error}", "see the queue's lines")
    read = ", ".join(f"{trigger} {number:g}" for trigger, number in counts.items())
    answer = seen.metrics.get(name)
    if answer is None or not answer.found or not answer.items:
        why = "" if answer is None else f": {answer.trouble or answer.body.get('message', answer.status)}"
        remedy = _log(seen, metrics=True)
        return warning("scaling", name, f"KEDA's number cannot be read{why}; in Redis: {read}", remedy)
    number = str(answer.items[0].get("value", "0"))
    waiting = 0 if counts.get("brake") else sum(counts.get(lane, 0) for lane in _LANES)
    if number == "0" and waiting + counts.get("busy", 0):
        remedy = "KEDA looks elsewhere: compare its triggers' address, databaseIndex and listName with the workers', "
        remedy += "and whether this doctor asked the same Redis"
        return bad("scaling", name, f"jobs wait or run and KEDA reads 0; in Redis: {read}", remedy)
    return ok("scaling", name, f"KEDA's number of workers is {number}; in Redis: {read}")


def counter(redis: Redis) -> Count:
    """Counts a key as KEDA's redis scaler does, by its type."""

    def count(key: str) -> float:
        kind: Any = redis.type(key)
        command = _COUNTS.get(kind)
        return float(getattr(redis, command)(key)) if command else 0.0

    return count


def check_scaling(seen: ClusterSeen, settings: SharedSettings | None) -> Iterator[Finding]:
    """`judge_scaling` with the Redis of these settings; None: it is not to be asked, or does not answer."""
    if settings is None:
        yield from judge_scaling(seen, None)
        return
    with closing(connect_redis(settings)) as redis:
        yield from judge_scaling(seen, counter(redis))


def conditions_of(seen: Object) -> dict[str, Mapping[str, Any]]:
    """The conditions of an object by their type."""
    return {str(each["type"]): each for each in seen.get("status", {}).get("conditions") or []}


def version_of(text: str) -> tuple[int, ...]:
    """Major and minor; nothing for a build that does not know its version and says v0.0.0."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    numbers = tuple(int(part) for part in found.groups()) if found else ()
    return numbers if any(numbers) else ()
