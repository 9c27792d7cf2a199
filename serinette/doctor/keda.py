"""KEDA: whether it is at work in a cluster, and whether it reads of each pool what is in Redis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from http import HTTPStatus
from typing import Any

from redis import Redis, RedisError

from serinette.doctor.cluster import ClusterSeen, Object
from serinette.doctor.findings import Finding, bad, first_of, ok, unknown, version_of, warning
from serinette.names import Lane
from serinette.pools import pauses
from serinette.settings import SharedSettings, connect_redis

LEAST_KEDA = (2, 20)
_LANES = tuple(lane.value for lane in Lane)
_COUNTS = {b"list": "llen", b"set": "scard", b"zset": "zcard", b"hash": "hlen"}


def judge_keda(seen: ClusterSeen) -> Iterator[Finding]:
    """Its kinds and its operator."""
    if seen["scaledobjects"].status == HTTPStatus.NOT_FOUND:
        message = "KEDA's kind ScaledObject is not served as keda.sh/v1alpha1 in this cluster"
        remedy = "install KEDA 2.20 or later (helm install keda kedacore/keda -n keda --create-namespace), "
        remedy += "or set keda.enabled=false"
        words = "not here, and not used: the pools have fixed sizes"
        yield first_of("keda", "installed", (not seen.installed, bad, message, remedy), otherwise=words)
        return
    yield from _operator(seen)


def _log(seen: ClusterSeen, *, metrics: bool) -> str:
    """How to read the log of the operator, or of its metrics server: KEDA's chart and its manifests name it apart."""
    names = [str(each["metadata"]["name"]) for each in seen["deployments of keda"].items]
    ours = [name for name in names if "keda" in name and ("metrics" in name) is metrics and "webhook" not in name]
    default = "keda-operator-metrics-apiserver" if metrics else "keda-operator"
    return f"kubectl -n {seen.place.keda_namespace} logs deploy/{next(iter(ours), default)}"


def _operator(seen: ClusterSeen) -> Iterator[Finding]:
    answer = seen["deployments of keda"]
    if answer.trouble:
        return
    found = {str(each["metadata"]["name"]): each for each in answer.items if "keda" in each["metadata"]["name"]}
    operator = next((each for name, each in found.items() if name.endswith("operator")), None)
    if operator is None:
        message = "no keda-operator runs in the namespace where it is looked for"
        remedy = "name its namespace: --keda-namespace here, keda.namespace in the chart (its NetworkPolicy admits it)"
        yield bad("keda", "operator", message, remedy)
        return
    idle = [name for name, each in found.items() if not each.get("status", {}).get("readyReplicas")]
    for name in idle:
        remedy = f"kubectl -n {seen.place.keda_namespace} describe deployment {name}"
        yield bad("keda", "operator", f"{name} has no ready pod: nothing is scaled", remedy)
    if not idle:
        yield ok("keda", "operator", f"{', '.join(found)} ready")
    if version := str(operator["metadata"].get("labels", {}).get("app.kubernetes.io/version", "")):
        old = () < version_of(version) < LEAST_KEDA
        remedy = "2.20 or later is needed: formulas over several triggers"
        yield first_of("keda", "version", (old, bad, f"KEDA {version}", remedy), otherwise=f"KEDA {version}")


def check_scaling(seen: ClusterSeen, settings: SharedSettings | None) -> Iterator[Finding]:
    """Each ScaledObject: ready, and reading what is in Redis. `settings`: of Redis; None: it cannot be asked."""
    for each in seen["scaledobjects"].items:
        name = str(each["metadata"]["name"])
        yield from _state(seen, each, name)
        if settings is None:
            remedy = "give --redis-url (through `kubectl port-forward`), or run the doctor where Redis is reached"
            yield unknown("scaling", name, "KEDA's number is not compared: Redis was not asked", remedy)
            continue
        with closing(connect_redis(settings)) as redis:
            yield _number(seen, each, name, redis)


def _state(seen: ClusterSeen, scaled_object: Object, name: str) -> Iterator[Finding]:
    """What KEDA says of it itself."""
    if paused := pauses(scaled_object["metadata"].get("annotations")):
        remedy = (
            f"take the annotation away: kubectl -n {seen.place.namespace} annotate scaledobject {name} {paused[0]}-"
        )
        yield warning("scaling", name, f"paused by {', '.join(paused)}", remedy)
    ready, log = conditions_of(scaled_object).get("Ready") or {}, _log(seen, metrics=False)
    message = f"KEDA says: {ready.get('reason', '')} {ready.get('message', '')}".strip()
    remedy = f"{log}: a wrong password, TLS or a NetworkPolicy keeps it from Redis"
    yield first_of(
        "scaling",
        name,
        (not ready, warning, "KEDA has not looked at it yet", log),
        (ready.get("status") != "True", bad, message, remedy),
        otherwise="KEDA is at work on it",
    )


def _number(seen: ClusterSeen, scaled_object: Object, name: str, redis: Redis) -> Finding:
    """KEDA's number of workers: never 0 while jobs wait or run, but for those that the brake holds back."""
    try:
        counts = {
            each["name"]: entries(redis, each["metadata"]["listName"]) for each in scaled_object["spec"]["triggers"]
        }
    except (RedisError, OSError) as error:
        return unknown("scaling", name, f"the keys of its triggers cannot be counted: {error}", "see the queue's lines")
    read = "in Redis: " + ", ".join(f"{trigger} {number:g}" for trigger, number in counts.items())
    answer = seen.metrics[name]
    why = answer.trouble or answer.body.get("message", answer.status)
    number = str(answer.items[0].get("value", "0")) if answer.found and answer.items else None
    waiting = 0 if counts.get("brake") else sum(counts.get(lane, 0) for lane in _LANES)
    remedy = "KEDA looks elsewhere: compare its triggers' address, databaseIndex and listName with the workers', "
    remedy += "and whether this doctor asked the same Redis"
    unread = f"{_log(seen, metrics=True)}; is it KEDA whose is external.metrics.k8s.io (kubectl get apiservice)?"
    idle = number == "0" and waiting + counts.get("busy", 0)
    return first_of(
        "scaling",
        name,
        (number is None, warning, f"KEDA's number cannot be read: {why}; {read}", unread),
        (idle, bad, f"jobs wait or run and KEDA reads 0; {read}", remedy),
        otherwise=f"KEDA's number of workers is {number}; {read}",
    )


def entries(redis: Redis, key: str) -> float:
    """Entries of a key as KEDA's redis scaler counts them, by its type."""
    kind: Any = redis.type(key)
    command = _COUNTS.get(kind)
    return float(getattr(redis, command)(key)) if command else 0.0


def conditions_of(seen: Object) -> dict[str, Mapping[str, Any]]:
    """The conditions of an object by their type."""
    return {str(each["type"]): each for each in seen.get("status", {}).get("conditions") or []}
