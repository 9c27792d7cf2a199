"""Valkey or Redis, as a process of ours would find it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from redis import Redis, RedisError
from redis.connection import parse_url
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from serinette.doctor.findings import Finding, answered, bad, judge_clock, ok, warning
from serinette.names import Keys
from serinette.settings import SharedSettings, connect_redis

_LEAST_VERSION = (7, 2)
_MOST_KEYS_SCANNED = 20_000


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why Redis could not be asked: known by the type of the error, or by redis-py's and the server's words for it."""

    what: str
    remedy: str
    phrases: tuple[str, ...] = ()
    kind: type[BaseException] | None = None

    def explains(self, error: BaseException) -> bool:
        """Whether the error is of this kind."""
        text = str(error).lower()
        return any(phrase in text for phrase in self.phrases) or (
            self.kind is not None and isinstance(error, self.kind)
        )


_NEEDS_TLS = Trouble("the server speaks TLS and we do not", "use rediss:// (chart: redis.tls.enabled=true)")
_NO_TLS = Trouble(
    "we speak TLS and the server does not",
    "use redis:// (chart: redis.tls.enabled=false)",
    ("wrong_version_number", "wrong version number", "record layer failure", "unknown protocol"),
)
_TIMEOUT = Trouble(
    "it does not answer in time",
    "look for a firewall or a NetworkPolicy between here and there, or a server that hangs",
    kind=RedisTimeoutError,
)
_PERMISSION = Trouble(
    "this user may not do what we need",
    "give the user `~PREFIX:* &PREFIX:* +@all -@dangerous +info`",
    kind=NoPermissionError,
)
_OTHER = Trouble("it cannot be asked", "look at its log")
# The first that explains an error is the one: words come before types, which say less.
_TROUBLES = (
    Trouble(
        "it has no such database",
        "take one of those it has, 0 always; correct the end of SERINETTE_REDIS_URL (chart: redis.db)",
        ("db index is out of range", "invalid db index"),
    ),
    Trouble(
        "its certificate cannot be trusted",
        "name its CA: ?ssl_ca_certs=FILE in the URL (chart: redis.tls.caSecret), and a host name that it is made for",
        ("certificate_verify_failed", "certificate verify failed", "hostname mismatch"),
    ),
    _NO_TLS,
    Trouble(
        "it asks for a password and was given none",
        "set SERINETTE_REDIS_PASSWORD (chart: redis.auth.existingSecret)",
        ("authentication required", "noauth", "hello must be called with"),
    ),
    Trouble(
        "its name is not known here",
        "inside a cluster give SERVICE.NAMESPACE.svc; from outside, `kubectl port-forward` and 127.0.0.1, or run the "
        "doctor in a gateway's pod (`kubectl exec deploy/... -- python -m serinette.cli doctor`)",
        ("name or service not known", "name resolution", "nodename nor servname", "no address associated"),
    ),
    Trouble(
        "nothing listens there",
        "start Valkey, or correct host and port of SERINETTE_REDIS_URL (chart: redis.host, redis.port)",
        ("refused", "no such file or directory"),
    ),
    Trouble(
        "it refuses this user or password",
        "correct SERINETTE_REDIS_USERNAME and SERINETTE_REDIS_PASSWORD (chart: the Secret redis.auth.existingSecret "
        "and its passwordKey, usernameKey); pods take a changed Secret up when they restart",
        ("wrongpass", "without any password configured"),
        AuthenticationError,
    ),
    _PERMISSION,
    _TIMEOUT,
)


def check_queue(settings: SharedSettings) -> list[Finding]:
    """Ask Redis. Writes one key that expires, and erases it."""
    url, database = _address(settings)
    keys = settings.keys
    try:
        with closing(connect_redis(settings)) as redis:
            redis.ping()
            questions = {
                "server": lambda: judge_info(redis.info("all")),
                "writable": lambda: [_writable(redis, keys)],
                "place": lambda: [_place(redis, keys, database, settings.redis_prefix)],
                "Redis": lambda: [_clock(redis)],
            }
            found = [ok("queue", "reachable", f"{url} answers, with these credentials")]
            for check, question in questions.items():
                found += answered("queue", check, _PERMISSION.remedy, question)
            return found
    except (RedisError, OSError) as error:
        trouble = next((each for each in _TROUBLES if each.explains(error)), _OTHER)
        if trouble in {_OTHER, _TIMEOUT}:
            trouble = _tls_mismatch(url, settings.redis_timeout_s) or trouble
        detail = str(error).splitlines()[0][:300] if str(error) else repr(error)
        return [bad("queue", "reachable", f"{url}: {trouble.what} ({detail})", trouble.remedy)]


def _address(settings: SharedSettings) -> tuple[str, int]:
    """URL without user and password, and the database."""
    url = settings.redis_url.get_secret_value()
    parts: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py's
    database = int(parts.get("db") or 0)
    if "path" in parts:
        return f"unix://{parts['path']}", database
    return f"{url.partition(':')[0]}://{parts.get('host', 'localhost')}:{parts.get('port', 6379)}/{database}", database


def _tls_mismatch(url: str, timeout_s: float) -> Trouble | None:
    """Whether the server speaks TLS and we do not, or the other way round; neither side says so by itself."""
    parts: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py's
    with suppress(OSError, KeyError):  # no host: a Unix socket
        place = (parts["host"], parts.get("port", 6379))
        if url.startswith("redis://"):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # any certificate shows that it is TLS
            with (
                socket.create_connection(place, timeout_s) as plain,
                context.wrap_socket(plain, server_hostname=parts["host"]),
            ):
                return _NEEDS_TLS
        elif url.startswith("rediss://"):
            with socket.create_connection(place, timeout_s) as plain:
                plain.sendall(b"PING\r\n")
                return _NO_TLS if plain.recv(1) in {b"+", b"-"} else None
    return None


def judge_info(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Version, role and what may lose jobs, by Redis's INFO."""
    version = str(info.get("valkey_version", info.get("redis_version", "?")))
    name = "Valkey" if "valkey_version" in info else "Redis"
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if name == "Redis" and parts < _LEAST_VERSION:
        yield bad("queue", "version", f"Redis {version}", "7.2 or later is needed, or any Valkey")
    else:
        yield ok("queue", "version", f"{name} {version}")
    if info.get("cluster_enabled"):
        remedy = "a job's keys would lie on several servers of it: use one primary"
        yield bad("queue", "role", "this is a Redis Cluster", remedy)
    elif info.get("role") != "master":
        primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        yield bad("queue", "role", "this is a replica, which takes no writes", f"name the primary, {primary}")
    else:
        yield ok("queue", "role", "a primary, by itself")
    yield from _losses(info)


def _losses(info: Mapping[str, Any]) -> Iterator[Finding]:
    """What erases or refuses jobs."""
    policy, most, used = (info.get(name) for name in ("maxmemory_policy", "maxmemory", "used_memory"))
    remedy = "CONFIG SET maxmemory-policy noeviction, and in its configuration; else full memory erases jobs in silence"
    if policy == "noeviction":
        yield ok("queue", "eviction", "maxmemory-policy is noeviction")
    elif most:
        yield bad("queue", "eviction", f"maxmemory-policy is {policy}", remedy)
    else:
        words = f"maxmemory-policy is {policy}, harmless while there is no maxmemory"
        yield warning("queue", "eviction", words, remedy)
    if not info.get("aof_enabled"):
        remedy = "CONFIG SET appendonly yes, and in its configuration: without it a restart loses accepted jobs"
        yield warning("queue", "append-only file", "appendonly is no", remedy)
    elif "err" in (info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status")):
        yield bad("queue", "append-only file", "its last write failed", "give Redis's disk room; see its log")
    else:
        yield ok("queue", "append-only file", "kept, and written without error")
    if most and used and used > 0.9 * most:
        remedy = "raise maxmemory (chart: valkey.maxmemory and its resources): at the bound new jobs are refused"
        yield bad("queue", "memory", f"{used / most:.0%} of maxmemory is used", remedy)
    else:
        bound = f" of {most / 2**20:.0f}" if most else ", no bound"
        yield ok("queue", "memory", f"{(used or 0) / 2**20:.0f} MiB used{bound}")


def _writable(redis: Redis, keys: Keys) -> Finding:
    try:
        redis.set(keys.doctor, "1", px=10_000)
        redis.delete(keys.doctor)
    except RedisError as error:
        remedy = "see what it says; give the user `~PREFIX:*`"
        return bad("queue", "writable", f"a write is refused: {error}", remedy)
    try:
        redis.eval("return 1", 0)  # as KEDA does
        redis.evalsha(str(redis.script_load("return 1")), 0)  # as we do
    except RedisError as error:
        remedy = "allow +eval +evalsha +script to this user: we and KEDA's redis scaler run scripts"
        return bad("queue", "writable", f"scripts are refused: {error}", remedy)
    return ok("queue", "writable", "takes writes and scripts")


def _clock(redis: Redis) -> Finding:
    sent_s = time.time()
    seconds, microseconds = redis.time()
    took_s = time.time() - sent_s
    return judge_clock("Redis", seconds + microseconds / 1e6 - (sent_s + took_s / 2), took_s / 2)


def _place(redis: Redis, keys: Keys, database: int, prefix: str) -> Finding:
    here = f"database {database}, prefix {prefix!r}"
    if redis.exists(keys.workers, keys.counters, keys.live, keys.leader, keys.credentials):
        return ok("queue", "place", f"a Serinette works here ({here})")
    if elsewhere := list(_elsewhere(redis, database)):
        remedy = "if it is yours, correct the end of SERINETTE_REDIS_URL and RQ_KEY_PREFIX "
        remedy += "(chart: redis.db, redis.prefix)"
        return warning("queue", "place", f"no Serinette in {here}, but in {', '.join(elsewhere)}", remedy)
    return ok("queue", "place", f"no Serinette has worked here yet ({here})")


def _elsewhere(redis: Redis, database: int) -> Iterator[str]:
    """Databases and prefixes of this server that a Serinette has worked in, among the first keys of each database."""
    ending = ":serinette:counters"
    lone: Redis = redis.client()  # type: ignore[no-untyped-call]  # redis-py's; a connection of its own
    with suppress(RedisError), lone as connection:
        for name in redis.info("keyspace"):
            other, cursor, scanned = int(name.removeprefix("db")), -1, 0
            connection.execute_command("SELECT", other)
            while cursor != 0 and scanned < _MOST_KEYS_SCANNED:
                cursor, found = connection.scan(max(0, cursor), match=f"*{ending}", count=1000)
                scanned += 1000
                where = "this database" if other == database else f"database {other}"
                yield from (f"prefix {key.decode().removesuffix(ending)!r} of {where}" for key in found)
        connection.execute_command("SELECT", database)
