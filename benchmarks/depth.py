"""What a submit, a poll and a cancel take with few and with a million waiting jobs, and what a job takes of Valkey.

Two gateways, each on an append-only Valkey of its own, one of them filled: they are asked in turns by one client.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from redis import Redis

from benchmarks.peers.load import Client
from benchmarks.peers.servers import LOAD_CORE, append_only, durability_of, gateway, make_key, on_core, url_of
from benchmarks.record import Figures, spread
from tests.processes import eventually
from tests.servers import valkey
from tests.stack import Stack, running

SHALLOW = 10  # jobs that came by real submits, in both
COPIES = 20_000  # enough for the mean of one job's bytes
BATCH = 1_000
FIRST_COPY = f"00000000-0000-4000-8000-{0:012}"
SONG = {"prompt": "jazz piano, smooth", "duration_s": 15}

# KEYS: the keys of one job, then those that it is a member of. ARGV: its id, number of the first copy, copies, how many
# of the KEYS are its own, then type and member for each of the others.
_COPY = """
local id, first, copies, own = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local pattern = id:gsub('%-', '%%-')
local add = {
    list = function(key, from, to) redis.call('RPUSH', key, to) end,
    set = function(key, from, to) redis.call('SADD', key, to) end,
    hash = function(key, from, to) redis.call('HSET', key, to, redis.call('HGET', key, from)) end,
    zset = function(key, from, to, number)
        redis.call('ZADD', key, string.format('%.6f', redis.call('ZSCORE', key, from) + (number + 1) * 1e-6), to)
    end,
}
for number = first, first + copies - 1 do
    local copy = string.format('00000000-0000-4000-8000-%012d', number)
    for place = 1, own do redis.call('COPY', KEYS[place], (KEYS[place]:gsub(pattern, copy))) end
    for place = own + 1, #KEYS do
        local at = 3 + 2 * (place - own)
        add[ARGV[at]](KEYS[place], ARGV[at + 1], (ARGV[at + 1]:gsub(pattern, copy)), number)
    end
end
"""


def fill(redis: Redis, job_id: str, copies: int) -> float:
    """Copy a job: every key with its id in the name, and its place in every list, set and hash.

    Whatever layout a submit writes is found by looking, so begin with a Valkey of few jobs. The copies' own contents
    still say the first job's id: they may wait and be counted, not be asked for. Answers the bytes that each takes
    beyond its own keys.
    """
    names = [key.decode() for key in redis.scan_iter(count=1_000)]
    own = [key for key in names if job_id in key]
    shared = [(key, *place) for key in names if key not in own for place in _places(redis, key, job_id)]
    arguments = [word for _, kind, member in shared for word in (kind, member)]
    keys = [*own, *(key for key, _, _ in shared)]
    script = redis.register_script(_COPY)
    before = _memory(redis)
    for first in range(0, copies, BATCH):
        script(keys, [job_id, first, min(BATCH, copies - first), len(own), *arguments])
    return (_memory(redis) - before) / copies - _own_bytes(redis, [key.replace(job_id, FIRST_COPY) for key in own])


def _own_bytes(redis: Redis, keys: list[str]) -> int:
    sizes: Any = [redis.memory_usage(key, samples=0) for key in keys]
    return sum(sizes)


def _sized(redis: Redis, job_id: str, index_bytes: float) -> Figures:
    """What a job's own keys take as they are, a copy's being tighter, and its places in what jobs share."""
    own_bytes = _own_bytes(redis, [key.decode() for key in redis.scan_iter(f"*{job_id}*", count=1_000)])
    return {"own": own_bytes, "index": round(index_bytes), "whole": own_bytes + round(index_bytes)}


def _places(redis: Redis, key: str, job_id: str) -> Iterator[tuple[str, str]]:
    kind: Any = redis.type(key)
    read: dict[bytes, Callable[[], Any]] = {
        b"list": lambda: redis.lrange(key, 0, -1),
        b"set": lambda: redis.smembers(key),
        b"zset": lambda: redis.zrange(key, 0, -1),
        b"hash": lambda: redis.hkeys(key),
    }
    members = read[kind]() if kind in read else ()
    return ((kind.decode(), member.decode()) for member in members if job_id.encode() in member)


def _memory(redis: Redis) -> int:
    reported: Any = redis.info("memory")
    return int(reported["used_memory"])


def bytes_of(redis: Redis, job_id: str, directory: Path) -> Figures:
    """What one more job in that job's state takes: its places by copies in a Valkey where nothing else happens."""
    with valkey(directory) as server:
        scratch = Redis.from_url(server.connection_url)
        for key in redis.scan_iter():
            if (dump := redis.dump(key)) is not None:
                scratch.restore(key, max(0, redis.pttl(key)), dump)
        return _sized(redis, job_id, fill(scratch, job_id, COPIES))


def job_bytes(directory: Path, ended_after_s: float) -> Figures:
    """Bytes of Valkey for a running job, one that has ended, and the same after `ended_after_s` more."""
    worker = {"SERINETTE_ENGINE_MODULE": "tests.engines", "SERINETTE_SLOTS": "1"}
    with running(directory, worker=worker) as stack:
        redis, client = Redis.from_url(stack.redis_url), Client(int(stack.url.rpartition(":")[2]))
        job_id = client.ask("POST", "/v1/jobs", {**SONG, "prompt": "until enough"})["id"]
        _wait_status(client, job_id, "running", stack)
        time.sleep(1)  # it reports a step, and then no more
        figures: Figures = {"running": bytes_of(redis, job_id, directory / "running")}
        (directory / "work" / "tokens").mkdir(parents=True, exist_ok=True)
        (directory / "work" / "tokens" / "enough").touch()
        _wait_status(client, job_id, "succeeded", stack)
        time.sleep(1)  # the controller has seen it
        figures["ended"] = bytes_of(redis, job_id, directory / "ended")
        if ended_after_s:
            time.sleep(ended_after_s)
            figures["ended_later"] = bytes_of(redis, job_id, directory / "later")
    return figures | {"ended_later_s": ended_after_s}


def _wait_status(client: Client, job_id: str, status: str, stack: Stack) -> None:
    if not eventually(lambda: client.ask("GET", f"/v1/jobs/{job_id}")["status"] == status, 60):
        raise RuntimeError(f"job {job_id} was never {status}: {stack.log('worker')}")


def timed_ms(client: Client) -> dict[str, float]:
    """One job that is submitted, polled and canceled, at the end of its lane; milliseconds of each."""
    steps = [("submit", "POST", ""), ("poll", "GET", "/{}"), ("cancel", "POST", "/{}/cancel")]
    took, job_id = {}, ""
    for name, method, path in steps:
        began = time.perf_counter()
        job = client.ask(method, "/v1/jobs" + path.format(job_id), SONG if name == "submit" else None)
        took[name] = 1000 * (time.perf_counter() - began)
        job_id = job["id"]
    return took


def measure(rounds: int = 200, jobs: int = 1_000_000, ended_after_s: float = 0, appendfsync: str = "always") -> Figures:
    """Medians at both depths and their ratio, and bytes per job."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        bytes_of_job = job_bytes(directory / "states", ended_after_s)
        stack.enter_context(on_core(LOAD_CORE))
        clients: dict[str, Client] = {}
        for name, depth in (("shallow", SHALLOW), ("deep", jobs)):
            redis = stack.enter_context(append_only(directory / name / "valkey", appendfsync))
            key = make_key(redis, directory / name)
            client = clients[name] = Client(stack.enter_context(gateway(directory / name, redis, "fsync")), key)
            ids = [client.ask("POST", "/v1/jobs", SONG)["id"] for _ in range(SHALLOW)]
            if depth > SHALLOW:
                bytes_of_job["waiting"] = _sized(redis, ids[0], fill(redis, ids[0], depth - SHALLOW))
                _settle(redis, depth)
        for client in clients.values():  # idle for as long as the filling took
            client.close()
        taken = [{name: timed_ms(client) for name, client in clients.items()} for _ in range(rounds)]
        figures: Figures = {"valkey": durability_of(redis), "jobs": {"shallow": SHALLOW, "deep": jobs}}
    for step in ("submit", "poll", "cancel"):
        each = {name: [took[name][step] for took in taken] for name in clients}
        figures[step] = {f"{name}_ms": spread(values, 2) for name, values in each.items()}
        figures[step]["deep_to_shallow"] = round(median(each["deep"]) / median(each["shallow"]), 3)
    return figures | {"bytes_per_job": bytes_of_job}


def _settle(redis: Redis, depth: int) -> None:
    """See that all copies wait, and that Valkey is done with rewriting its file."""
    waiting = redis.llen("rq:queue:default.normal")
    if waiting != depth:
        raise RuntimeError(f"{waiting} jobs wait in {url_of(redis)} and {depth} should")

    def written() -> bool:
        reported: Any = redis.info("persistence")
        return not reported["aof_rewrite_in_progress"] and not reported["aof_rewrite_scheduled"]

    if not eventually(written, 600):
        raise RuntimeError("Valkey is still rewriting its file after ten minutes")
