"""Valkey or Redis, as a process of ours would find it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from typing import Any, Literal, NamedTuple

from pydantic import Field
from redis import Redis, RedisError
from redis.connection import parse_url
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from serinette.doctor.findings import Case, Finding, answered, bad, first_of, ok, unknown, version_of, warning
from serinette.names import Keys
from serinette.settings import SharedSettings, connect_redis

_LEAST_VERSION = (7, 2)
# Beyond it, leases and links of two machines disagree in what people see.
_MOST_SKEW_S = 2.0


class Trouble(NamedTuple):
    """Why Redis could not be asked: known by redis-py's and the server's words, in lower case, or the error's type."""

    what: str
    remedy: str
    phrases: tuple[str, ...] = ()
    kind: type[BaseException] | tuple[()] = ()


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


class DoctorSettings(SharedSettings):
    """What the doctor looks at."""

    durability: Literal["process", "fsync"] = Field("process", description="That of the gateways.")


def check_queue(settings: SharedSettings, durability: str = "process") -> list[Finding]:
    """Ask Redis. Writes one key that expires, and erases it. `durability`: that of the gateways."""
    url, database, address = _address(settings)
    keys = settings.keys
    try:
        with closing(connect_redis(settings)) as redis:
            redis.ping()
            questions = {
                "server": lambda: judge_info(redis.info("all")),
                "synced": lambda: [_synced(redis, durability)],
                "writable": lambda: [_writable(redis, keys)],
                "place": lambda: [_place(redis, keys, database, settings.redis_prefix)],
                "clock": lambda: [_clock(redis)],
            }
            found = [ok("queue", "reachable", f"{url} answers, with these credentials")]
            for check, question in questions.items():
                found += answered("queue", check, _PERMISSION.remedy, question)
            return found
    except (RedisError, OSError) as error:
        text = str(error).lower()
        explaining = (
            each for each in _TROUBLES if any(map(text.__contains__, each.phrases)) or isinstance(error, each.kind)
        )
        trouble = next(explaining, _OTHER)
        if trouble in {_OTHER, _TIMEOUT} and address:
            trouble = _tls_mismatch(url, address, settings.redis_timeout_s) or trouble
        detail = str(error).splitlines()[0][:300] if text else repr(error)
        return [bad("queue", "reachable", f"{url}: {trouble.what} ({detail})", trouble.remedy)]


def _address(settings: SharedSettings) -> tuple[str, int, tuple[str, int] | None]:
    """URL without user and password, the database, and host and port, where it is no Unix socket."""
    url = settings.redis_url.get_secret_value()
    parts: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]  # redis-py's
    database, host, port = int(parts.get("db") or 0), parts.get("host", "localhost"), parts.get("port", 6379)
    if "path" in parts:
        return f"unix://{parts['path']}", database, None
    return f"{url.partition(':')[0]}://{host}:{port}/{database}", database, (host, port)


def _tls_mismatch(url: str, address: tuple[str, int], timeout_s: float) -> Trouble | None:
    """Whether the server speaks TLS and we do not, or the other way round; neither side says so by itself."""
    with suppress(OSError), socket.create_connection(address, timeout_s) as plain:
        if url.startswith("rediss://"):
            plain.sendall(b"PING\r\n")
            return _NO_TLS if plain.recv(1) in {b"+", b"-"} else None
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # any certificate shows that it is TLS
        with context.wrap_socket(plain, server_hostname=address[0]):
            return _NEEDS_TLS
    return None


def judge_info(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Version, role and what may lose or refuse jobs, by Redis's INFO."""
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version", info.get("redis_version", "?")))
    old = name == "Redis" and version_of(version) < _LEAST_VERSION
    primary = f"name the primary, {info.get('master_host', '?')}:{info.get('master_port', '?')}"
    several = "a job's keys would lie on several servers of it: use one primary"
    evicts, policy = info.get("maxmemory_policy") != "noeviction", f"maxmemory-policy is {info.get('maxmemory_policy')}"
    keep = "CONFIG SET maxmemory-policy noeviction, and in its configuration; else full memory erases jobs in silence"
    append = "CONFIG SET appendonly yes, and in its configuration: without it a restart loses accepted jobs"
    failed = "err" in (info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status"))
    checks: dict[str, tuple[str, *tuple[Case, ...]]] = {
        "version": (f"{name} {version}", (old, bad, f"Redis {version}", "7.2 or later is needed, or any Valkey")),
        "role": (
            "a primary, by itself",
            (info.get("cluster_enabled"), bad, "this is a Redis Cluster", several),
            (info.get("role") != "master", bad, "this is a replica, which takes no writes", primary),
        ),
        "eviction": (
            policy,
            (evicts and info.get("maxmemory"), bad, policy, keep),
            (evicts, warning, f"{policy}, harmless while there is no maxmemory", keep),
        ),
        "append-only file": (
            "kept, and written without error",
            (not info.get("aof_enabled"), warning, "appendonly is no", append),
            (failed, bad, "its last write failed", "give Redis's disk room; see its log"),
        ),
    }
    for check, (well, *cases) in checks.items():
        yield first_of("queue", check, *cases, otherwise=well)


def _synced(redis: Redis, durability: str) -> Finding:
    """Whether what was accepted is on the disk when it was answered (docs/decisions/0023)."""
    either = "CONFIG SET appendfsync always, and in its configuration; or gateway.durability=fsync "
    either += "(SERINETTE_DURABILITY here), by which submits wait for the disk"
    try:
        policy = redis.config_get("append*")
    except RedisError:  # as managed servers do
        refused = "CONFIG GET appendfsync is refused"
        hidden = (durability == "process", unknown, refused, f"if it is not always: {either}")
        return first_of("queue", "synced", hidden, otherwise=f"submits wait for the disk: durability {durability}")
    late = policy.get("appendonly") == "yes" and policy.get("appendfsync") != "always" and durability == "process"
    words = f"appendfsync is {policy.get('appendfsync')}, gateway.durability {durability}"
    message = f"{words}: up to two seconds of accepted jobs are lost when Redis or its node dies"
    return first_of("queue", "synced", (late, warning, message, either), otherwise=words)


def _writable(redis: Redis, keys: Keys) -> Finding:
    refused, remedy = "a write is refused", "see what it says; give the user `~PREFIX:*`"
    try:
        redis.set(keys.doctor, "1", px=10_000)
        redis.delete(keys.doctor)
        refused = "scripts are refused"
        remedy = "allow +eval +evalsha +script to this user: we and KEDA's redis scaler run scripts"
        redis.eval("return 1", 0)  # as KEDA does
        redis.evalsha(str(redis.script_load("return 1")), 0)  # as we do
    except RedisError as error:
        return bad("queue", "writable", f"{refused}: {error}", remedy)
    return ok("queue", "writable", "takes writes and scripts")


def _clock(redis: Redis) -> Finding:
    sent_s = time.time()
    seconds, microseconds = redis.time()
    answered_s = time.time()
    ahead_s = seconds + microseconds / 1e6 - (sent_s + answered_s) / 2
    off = abs(ahead_s) - (answered_s - sent_s) / 2 > _MOST_SKEW_S  # as exactly as it could be measured
    message = f"its clock is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
    remedy = "let both machines keep time by NTP (chronyc tracking; timedatectl)"
    return first_of("queue", "clock", (off, warning, message, remedy), otherwise="agrees with this machine's")


def _place(redis: Redis, keys: Keys, database: int, prefix: str) -> Finding:
    here = f"(database {database}, prefix {prefix!r})"
    used = redis.exists(keys.workers, keys.counters, keys.live, keys.leader, keys.credentials)
    return ok(
        "queue", "place", f"a Serinette works here {here}" if used else f"no Serinette has worked here yet {here}"
    )
