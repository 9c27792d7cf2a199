"""Valkey or Redis, as a process of ours would find it."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from typing import Any, NamedTuple

from redis import Redis, RedisError
from redis.connection import parse_url
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from serinette.doctor.findings import Finding, answered, bad, first_of, judge_clock, ok, version_of, warning
from serinette.names import Keys
from serinette.settings import SharedSettings, connect_redis

_LEAST_VERSION = (7, 2)
_MOST_KEYS_SCANNED = 20_000


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


def check_queue(settings: SharedSettings) -> list[Finding]:
    """Ask Redis. Writes one key that expires, and erases it."""
    url, database, address = _address(settings)
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
    needed = "7.2 or later is needed, or any Valkey"
    yield first_of("queue", "version", (old, bad, f"Redis {version}", needed), otherwise=f"{name} {version}")
    primary = f"name the primary, {info.get('master_host', '?')}:{info.get('master_port', '?')}"
    several = "a job's keys would lie on several servers of it: use one primary"
    yield first_of(
        "queue",
        "role",
        (info.get("cluster_enabled"), bad, "this is a Redis Cluster", several),
        (info.get("role") != "master", bad, "this is a replica, which takes no writes", primary),
        otherwise="a primary, by itself",
    )
    policy, most, used = info.get("maxmemory_policy"), info.get("maxmemory") or 0, info.get("used_memory") or 0
    evicts, words = policy != "noeviction", f"maxmemory-policy is {policy}"
    keep = "CONFIG SET maxmemory-policy noeviction, and in its configuration; else full memory erases jobs in silence"
    yield first_of(
        "queue",
        "eviction",
        (evicts and most, bad, words, keep),
        (evicts, warning, f"{words}, harmless while there is no maxmemory", keep),
        otherwise=words,
    )
    failed = "err" in (info.get("aof_last_write_status"), info.get("aof_last_bgrewrite_status"))
    append = "CONFIG SET appendonly yes, and in its configuration: without it a restart loses accepted jobs"
    yield first_of(
        "queue",
        "append-only file",
        (not info.get("aof_enabled"), warning, "appendonly is no", append),
        (failed, bad, "its last write failed", "give Redis's disk room; see its log"),
        otherwise="kept, and written without error",
    )
    share = used / most if most else 0.0
    more = "raise maxmemory (chart: valkey.maxmemory and its resources): at the bound new jobs are refused"
    bound = f" of {most / 2**20:.0f}" if most else ", no bound"
    full = (share > 0.9, bad, f"{share:.0%} of maxmemory is used", more)
    yield first_of("queue", "memory", full, otherwise=f"{used / 2**20:.0f} MiB used{bound}")


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
    took_s = time.time() - sent_s
    return judge_clock("Redis", seconds + microseconds / 1e6 - (sent_s + took_s / 2), took_s / 2)


def _place(redis: Redis, keys: Keys, database: int, prefix: str) -> Finding:
    here = f"database {database}, prefix {prefix!r}"
    used = redis.exists(keys.workers, keys.counters, keys.live, keys.leader, keys.credentials)
    elsewhere = [] if used else list(_elsewhere(redis, database))
    message = f"no Serinette in {here}, but in {', '.join(elsewhere)}"
    remedy = "if it is yours, correct the end of SERINETTE_REDIS_URL and RQ_KEY_PREFIX (chart: redis.db, redis.prefix)"
    words = f"a Serinette works here ({here})" if used else f"no Serinette has worked here yet ({here})"
    return first_of("queue", "place", (elsewhere, warning, message, remedy), otherwise=words)


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
