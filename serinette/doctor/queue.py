"""Valkey or Redis, as a process of ours would find it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from redis import Redis, RedisError
from redis.connection import parse_url

from serinette.doctor.findings import Finding, bad, judge_clock, ok, warning
from serinette.doctor.redis_troubles import REMEDIES, Trouble, trouble_of
from serinette.names import Keys
from serinette.settings import SharedSettings, connect_redis

_LEAST_VERSION = (7, 2)
_MARKERS_LOOKED_AT = 20_000


@dataclass(frozen=True, slots=True)
class QueueSeen:
    """What Redis said."""

    url: str  # without secrets
    database: int
    prefix: str
    trouble: Trouble | None = None
    detail: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    write_error: str = ""
    script_error: str = ""
    ahead_s: float = 0.0
    clock_within_s: float = 0.0  # how exactly that could be measured
    ours: bool = False  # a Serinette has worked here, in this database, under this prefix
    elsewhere: tuple[str, ...] = ()  # ... or there


def address_of(settings: SharedSettings) -> tuple[str, int]:
    """URL without user and password, and the database."""
    told: dict[str, Any] = parse_url(settings.redis_url.get_secret_value())  # type: ignore[no-untyped-call]  # redis-py's
    database = int(told.get("db") or 0)
    if "path" in told:
        return f"unix://{told['path']}", database
    scheme = settings.redis_url.get_secret_value().partition(":")[0]
    return f"{scheme}://{told.get('host', 'localhost')}:{told.get('port', 6379)}/{database}", database


def look_at_queue(settings: SharedSettings) -> QueueSeen:
    """Ask Redis. Writes one key that expires, and takes it away."""
    url, database = address_of(settings)
    seen = QueueSeen(url, database, settings.redis_prefix)
    try:
        with closing(connect_redis(settings)) as redis:
            return _asked(redis, seen, settings.keys)
    except (RedisError, OSError) as error:
        trouble = trouble_of(error)
        if trouble in {Trouble.OTHER, Trouble.TIMEOUT}:
            trouble = _other_tongue(url) or trouble
        return replace(seen, trouble=trouble, detail=str(error).splitlines()[0][:300] if str(error) else repr(error))


def _asked(redis: Redis, seen: QueueSeen, keys: Keys) -> QueueSeen:
    redis.ping()
    sent_s = time.time()
    seconds, microseconds = redis.time()
    took_s = time.time() - sent_s
    info: dict[str, Any] = redis.info("all")
    write_error = script_error = ""
    try:
        redis.set(keys.doctor, "1", px=10_000)
        redis.delete(keys.doctor)
    except RedisError as error:
        write_error = str(error)
    try:
        redis.eval("return 1", 0)  # as KEDA does
        redis.evalsha(str(redis.script_load("return 1")), 0)  # as we do
    except RedisError as error:
        script_error = str(error)
    ours = _is_ours(redis, keys)
    return replace(
        seen,
        info=info,
        write_error=write_error,
        script_error=script_error,
        ahead_s=seconds + microseconds / 1e6 - (sent_s + took_s / 2),
        clock_within_s=took_s / 2,
        ours=ours,
        elsewhere=() if ours else _elsewhere(redis, info, keys),
    )


def _is_ours(redis: Redis, keys: Keys) -> bool:
    return bool(redis.exists(keys.workers, keys.counters, keys.live, keys.leader, keys.credentials))


def _elsewhere(redis: Redis, info: Mapping[str, Any], keys: Keys) -> tuple[str, ...]:
    """Other prefixes here and other databases that a Serinette worked in; looks at so many keys and no more."""
    found: set[str] = set()
    ending, looked = ":serinette:counters", 0
    with suppress(RedisError):
        cursor = 0
        while True:
            cursor, names = redis.scan(cursor, match=f"*{ending}", count=1000)
            texts = (name.decode() if isinstance(name, bytes) else name for name in names)
            found |= {f"prefix {name.removesuffix(ending)!r} of this database" for name in texts}
            looked += 1000
            if cursor == 0 or looked >= _MARKERS_LOOKED_AT:
                break
    here = redis.connection_pool.connection_kwargs.get("db") or 0
    for name in info:
        if name.startswith("db") and name[2:].isdecimal() and int(name[2:]) != here:
            lone: Redis = redis.client()  # type: ignore[no-untyped-call]  # redis-py's; a connection of its own
            with suppress(RedisError), lone as other:
                other.execute_command("SELECT", int(name[2:]))
                if _is_ours(other, keys):
                    found.add(f"database {name[2:]}")
                other.execute_command("SELECT", here)
    return tuple(sorted(found))


def _other_tongue(url: str) -> Trouble | None:
    """Whether the server speaks TLS and we do not, or the other way round; neither side says so by itself."""
    if url.startswith("redis://"):
        return Trouble.NEEDS_TLS if _speaks_tls(url) else None
    return Trouble.NO_TLS if url.startswith("rediss://") and _speaks_plain(url) else None


def _speaks_plain(url: str) -> bool:
    """Whether a PING without TLS is answered, be it by a refusal."""
    told: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py's
    try:
        with socket.create_connection((told["host"], told.get("port", 6379)), timeout=3) as plain:
            plain.sendall(b"PING\r\n")
            return plain.recv(1) in {b"+", b"-"}
    except OSError:
        return False


def _speaks_tls(url: str) -> bool:
    """Whether a handshake succeeds where redis:// did not; whose certificate it is does not matter for that."""
    told: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py's
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((told["host"], told.get("port", 6379)), timeout=3) as plain,
            context.wrap_socket(plain, server_hostname=told["host"]),
        ):
            return True
    except OSError:
        return False


def judge_queue(seen: QueueSeen) -> list[Finding]:
    """All that can be said of the queue."""
    if seen.trouble is not None:
        what, remedy = REMEDIES[seen.trouble]
        return [bad("queue", "reachable", f"{seen.url}: {what} ({seen.detail})", remedy)]
    findings = [ok("queue", "reachable", f"{seen.url} answers, with these credentials")]
    findings += [_version(seen.info), _role(seen.info), _policy(seen.info), _append_only(seen.info)]
    findings += [
        _memory(seen.info),
        _rights(seen),
        _place(seen),
        judge_clock("Redis", seen.ahead_s, seen.clock_within_s),
    ]
    return findings


def _version(info: Mapping[str, Any]) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version", info.get("redis_version", "?")))
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if name == "Redis" and parts < _LEAST_VERSION:
        return bad("queue", "version", f"Redis {version}", "7.2 or later is needed, or any Valkey")
    return ok("queue", "version", f"{name} {version}")


def _role(info: Mapping[str, Any]) -> Finding:
    if info.get("cluster_enabled"):
        return bad("queue", "role", "this is a Redis Cluster", "queues span keys that a cluster parts: use one primary")
    if info.get("role") != "master":
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        return bad("queue", "role", "this is a replica, which takes no writes", f"name the primary, {primary}")
    return ok("queue", "role", "a primary, by itself")


def _policy(info: Mapping[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy", "?")
    if policy != "noeviction" and info.get("maxmemory"):
        remedy = (
            "CONFIG SET maxmemory-policy noeviction, and in its configuration; else full memory erases jobs in silence"
        )
        return bad("queue", "eviction", f"maxmemory-policy is {policy}", remedy)
    if policy != "noeviction":
        remedy = "CONFIG SET maxmemory-policy noeviction, before anybody sets a maxmemory"
        return warning(
            "queue", "eviction", f"maxmemory-policy is {policy}, harmless while there is no maxmemory", remedy
        )
    return ok("queue", "eviction", "maxmemory-policy is noeviction")


def _append_only(info: Mapping[str, Any]) -> Finding:
    if not info.get("aof_enabled"):
        remedy = (
            "CONFIG SET appendonly yes, and in its configuration: without it a restart of Redis loses accepted jobs"
        )
        return warning("queue", "append-only file", "appendonly is no", remedy)
    if "err" in (info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status")):
        return bad("queue", "append-only file", "its last write failed", "give Redis's disk room; see its log")
    return ok("queue", "append-only file", "kept, and written without error")


def _memory(info: Mapping[str, Any]) -> Finding:
    most, used = int(info.get("maxmemory") or 0), int(info.get("used_memory") or 0)
    if most and used > 0.9 * most:
        remedy = "raise maxmemory (chart: valkey.maxmemory and its resources): at the bound every write is refused"
        return bad("queue", "memory", f"{used / most:.0%} of maxmemory is used", remedy)
    return ok("queue", "memory", f"{used / 2**20:.0f} MiB used" + (f" of {most / 2**20:.0f}" if most else ", no bound"))


def _rights(seen: QueueSeen) -> Finding:
    if seen.write_error:
        return bad(
            "queue",
            "writable",
            f"a write is refused: {seen.write_error}",
            "see what it says; give the user `~PREFIX:*`",
        )
    if seen.script_error:
        remedy = "allow +eval +evalsha +script to this user: we and KEDA's redis scaler run scripts"
        return bad("queue", "writable", f"scripts are refused: {seen.script_error}", remedy)
    return ok("queue", "writable", "takes writes and scripts")


def _place(seen: QueueSeen) -> Finding:
    here = f"database {seen.database}, prefix {seen.prefix!r}"
    if seen.ours:
        return ok("queue", "place", f"a Serinette works here ({here})")
    if seen.elsewhere:
        remedy = (
            "if that is yours, correct the end of SERINETTE_REDIS_URL and RQ_KEY_PREFIX (chart: redis.db, redis.prefix)"
        )
        return warning("queue", "place", f"no Serinette in {here}, but in {', '.join(seen.elsewhere)}", remedy)
    return ok("queue", "place", f"no Serinette has worked here yet ({here})")
