"""KEDA's number against ours: whether it looks where the workers look, and reckons what the queue says."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from redis import Redis, RedisError
from redis.connection import parse_url

from serinette.doctor.cluster import ClusterSeen, Object
from serinette.doctor.findings import Finding, bad, ok, unknown, warning
from serinette.doctor.queue import QueueSeen
from serinette.errors import ConfigurationError
from serinette.names import Keys, Lane
from serinette.scaling.rule import Rule, read_rule
from serinette.settings import SharedSettings, connect_redis

_SIZES = {b"list": "llen", b"set": "scard", b"zset": "zcard", b"hash": "hlen", b"none": None}


def count_keys(settings: SharedSettings, rules: Mapping[str, Rule]) -> dict[str, dict[str, float]]:
    """What each trigger of each rule counts, read as KEDA's redis scaler reads it. Empty when Redis cannot be asked."""
    try:
        with closing(connect_redis(settings)) as redis:
            return {
                name: {trigger: _size(redis, key) for trigger, key in rule.triggers.items()}
                for name, rule in rules.items()
            }
    except (RedisError, OSError):
        return {}


def _size(redis: Redis, key: str) -> float:
    kind: Any = redis.type(key)
    command = _SIZES.get(kind)
    return float(getattr(redis, command)(key)) if command else 0.0


def rules_of(seen: ClusterSeen) -> dict[str, Rule]:
    """By the ScaledObject's name; what cannot be read is left out."""
    rules = {}
    for each in seen["scaledobjects"].items:
        try:
            rules[str(each["metadata"]["name"])] = read_rule(each)
        except ConfigurationError:
            continue
    return rules


def judge_scaling(
    seen: ClusterSeen, queue: QueueSeen | None, counts: Mapping[str, Mapping[str, float]]
) -> list[Finding]:
    """Each ScaledObject: ready, looking at our keys, and telling our number."""
    findings: list[Finding] = []
    rules = rules_of(seen)
    for each in seen["scaledobjects"].items:
        name = str(each["metadata"]["name"])
        findings += _conditions(each, name, seen.namespace)
        if name not in rules:
            message = "its formula cannot be evaluated here"
            findings.append(unknown("scaling", name, message, "compare its spec with the chart's"))
            continue
        findings += _place(seen, rules[name], name)
        if queue is not None and queue.trouble is None:
            findings.append(_number(seen, rules[name], name, counts.get(name)))
        else:
            remedy = "give --redis-url (through `kubectl port-forward`), or run the doctor where Redis is reached"
            findings.append(unknown("scaling", name, "KEDA's number is not compared: Redis was not asked", remedy))
    return findings


def _conditions(scaled_object: Object, name: str, namespace: str) -> list[Finding]:
    conditions = {each["type"]: each for each in scaled_object.get("status", {}).get("conditions") or []}
    annotations = scaled_object["metadata"].get("annotations") or {}
    findings = []
    paused = sorted(key for key in annotations if key.startswith("autoscaling.keda.sh/paused"))
    if paused:
        remedy = f"take the annotation away: kubectl -n {namespace} annotate scaledobject {name} {paused[0]}-"
        findings.append(warning("scaling", name, f"paused by {', '.join(paused)}", remedy))
    if scaled_object["spec"].get("fallback", {}).get("replicas") == 0:
        remedy = "take spec.fallback away: without one a failing trigger freezes the pool, and with it ends it"
        findings.append(bad("scaling", name, "falls back to 0 replicas when Redis cannot be asked", remedy))
    ready = conditions.get("Ready")
    if ready is None:
        remedy = "kubectl -n keda logs deploy/keda-operator"
        findings.append(warning("scaling", name, "KEDA has not looked at it yet", remedy))
    elif ready["status"] != "True":
        message = f"KEDA says: {ready.get('reason', '')} {ready.get('message', '')}".strip()
        remedy = (
            "kubectl -n keda logs deploy/keda-operator: a wrong password, TLS or a NetworkPolicy keeps it from Redis"
        )
        findings.append(bad("scaling", name, message, remedy))
    else:
        findings.append(ok("scaling", name, "KEDA is at work on it"))
    return findings


def _place(seen: ClusterSeen, rule: Rule, name: str) -> list[Finding]:
    """Whether KEDA's triggers name the database and the keys that the pool's workers use."""
    environment = _environment(seen, rule.pool)
    if "SERINETTE_REDIS_URL" not in environment:
        return []
    told: dict[str, Any] = parse_url(environment["SERINETTE_REDIS_URL"])  # type: ignore[no-untyped-call]  # redis-py's
    keys, database = Keys(environment.get("RQ_KEY_PREFIX", "rq")), int(told.get("db") or 0)
    remedy = "render both from one chart: redis.db, redis.prefix and the pool's name feed workers and triggers alike"
    findings = []
    if rule.database != database:
        message = f"KEDA looks at database {rule.database}, the workers use {database}: it reads 0 in silence"
        findings.append(bad("scaling", name, message, remedy))
    pool = environment.get("SERINETTE_POOL", rule.pool)
    expected = {keys.waiting(pool, lane) for lane in Lane} | {keys.busy(pool), keys.brake(pool)}
    if other := sorted(set(rule.triggers.values()) ^ expected):
        findings.append(bad("scaling", name, f"KEDA and the workers name other keys: {', '.join(other)}", remedy))
    return findings or [ok("scaling", name, "its triggers name the workers' own database and keys")]


def _environment(seen: ClusterSeen, pool: str) -> dict[str, str]:
    for each in seen["deployments"].items:
        if each["metadata"].get("labels", {}).get("serinette.dev/pool") == pool:
            entries = each["spec"]["template"]["spec"]["containers"][0].get("env") or []
            return {entry["name"]: entry["value"] for entry in entries if "value" in entry}
    return {}


def _number(seen: ClusterSeen, rule: Rule, name: str, counted: Mapping[str, float] | None) -> Finding:
    if counted is None:
        return unknown("scaling", name, "the keys of its triggers could not be counted", "see the lines on the queue")
    ours = rule.formula(counted)
    read = ", ".join(f"{trigger} {count:g}" for trigger, count in counted.items())
    answer = seen.metrics.get(name)
    if answer is None or not answer.found or not (items := answer.items):
        why = "" if answer is None else f": {answer.body.get('message', answer.status)}"
        remedy = "kubectl -n keda logs deploy/keda-operator-metrics-apiserver"
        return warning("scaling", name, f"we count {ours:g} ({read}); KEDA's number cannot be read{why}", remedy)
    theirs = quantity(str(items[0].get("value", "0")))
    if abs(theirs - ours) < 0.5:
        return ok("scaling", name, f"KEDA and we both reckon {ours:g} workers ({read})")
    if theirs == 0:
        remedy = (
            "KEDA looks elsewhere: compare its triggers' address, databaseIndex and listName with ours, and whether "
        )
        remedy += "this doctor asked the same Redis"
        return bad("scaling", name, f"jobs wait or run and KEDA reads 0; we reckon {ours:g} ({read})", remedy)
    remedy = (
        "ask again: while the queue moves they may differ by a poll; if it stays, compare address, database and keys"
    )
    return warning("scaling", name, f"KEDA reckons {theirs:g} workers, we {ours:g} ({read})", remedy)


def quantity(text: str) -> float:
    """A Kubernetes quantity as metrics have it: 3, 2500m, 1k."""
    scales = {"m": 1e-3, "k": 1e3, "M": 1e6}
    return float(text[:-1]) * scales[text[-1]] if text[-1:] in scales else float(text)
