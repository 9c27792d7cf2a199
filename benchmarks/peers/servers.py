"""The servers that are measured: each in a process of its own, on a core of its own, and ended with the measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis import Redis

from serinette.leash import leashed
from tests.processes import eventually
from tests.servers import free_ports, valkey

# A server has a core to itself; Valkey and the load share the other.
SERVER_CORE, LOAD_CORE = 0, 1
ROOT = Path(__file__).parents[2]
TENANT = "bench"
# Bounds that are looked at and never reached.
LIMITS = ("--in-flight", "--queued", "--per-minute", "--gpu-seconds")
ENDLESS = 10_000_000


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Keep the calling thread, and the processes it starts, on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def append_only(directory: Path, appendfsync: str) -> Iterator[Redis]:
    """A Valkey that keeps an append-only file, beside the load."""
    with on_core(LOAD_CORE), valkey(directory, append_only=True) as server:
        redis = Redis.from_url(server.connection_url)
        redis.config_set("appendfsync", appendfsync)
        redis.config_set("stream-node-max-bytes", 512)  # as shipped
        yield redis


def url_of(redis: Redis) -> str:
    """Where it listens."""
    return f"redis://127.0.0.1:{redis.connection_pool.connection_kwargs['port']}/0"


def durability_of(redis: Redis) -> dict[str, str]:
    """How it keeps what is written, as it says itself."""
    reported: Any = redis.config_get("append*")
    return {name: reported[name] for name in ("appendonly", "appendfsync")}


def environment_of(redis_url: str, directory: Path, **settings: object) -> dict[str, str]:
    """Of a process of ours; what a developer has set is left out."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SERINETTE_", "RQ_"))}
    given = {"redis_url": redis_url, "store_url": f"file://{directory}/store", "work_dir": directory, **settings}
    (directory / "store").mkdir(parents=True, exist_ok=True)
    return inherited | {f"SERINETTE_{name.upper()}": str(value) for name, value in given.items()}


@contextmanager
def started(
    command: list[str], environment: Mapping[str, str] | None = None, checkout: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m command...` of a checkout, on whatever core the caller is."""
    own = {**(environment or os.environ), "PYTHONPATH": str(checkout)}
    process = subprocess.Popen(leashed([sys.executable, "-m", *command]), env=own, cwd=checkout)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@cache
def _listener(port: int) -> psutil.Process:
    processes = psutil.Process().children(recursive=True)
    return next(each for each in processes if any(it.laddr.port == port for it in each.net_connections("tcp")))


def cpu_s(port: int) -> float:
    """CPU seconds so far of the process of ours that listens on a port."""
    used = _listener(port).cpu_times()
    return float(used.user + used.system)


def wait_until(port: int, path: str, field: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the answer's `field` is true."""

    def well() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"a server ended with {process.returncode}")
        try:
            return bool(httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False).json().get(field))
        except (httpx.HTTPError, ValueError):
            return False

    if not eventually(well, 120):
        raise RuntimeError(f"{path} has no {field} after two minutes")


@contextmanager
def peer(name: str, redis: Redis) -> Iterator[int]:
    """One of app.py's, on its core; its port."""
    port = free_ports(1)[0]
    with on_core(SERVER_CORE), started(["benchmarks.peers.app", name, str(port), url_of(redis)]) as process:
        wait_until(port, "/healthz", "status", process)
        with on_core(LOAD_CORE):
            yield port


@contextmanager
def gateway(directory: Path, redis: Redis, durability: str) -> Iterator[int]:
    """Ours with everything on, keys and quotas too, on its core; its port."""
    port = free_ports(1)[0]
    settings = {"port": port, "durability": durability, "auth": True, "max_waiting": ENDLESS, "log_level": "WARNING"}
    environment = environment_of(url_of(redis), directory, **settings)
    with on_core(SERVER_CORE), started(["api"], environment) as process:
        wait_until(port, "/healthz", "status", process)
        with on_core(LOAD_CORE):
            yield port


def make_key(redis: Redis, directory: Path) -> str:
    """A key of a tenant with quotas, made as an operator makes it."""

    def keys(*arguments: str) -> str:
        command = [sys.executable, "-m", "serinette.cli", "keys", *arguments]
        environment = environment_of(url_of(redis), directory)
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT).stdout

    keys("limit", TENANT, *(word for limit in LIMITS for word in (limit, str(ENDLESS))))
    return str(json.loads(keys("create", TENANT, "--json"))["key"])
