"""Which process holds work at this moment: what is killed must have had something to lose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
from redis import Redis

from serinette.job import AttemptOutcome
from serinette.jobs import Entry, Jobs, calls
from serinette.names import Keys
from tests.chaos.cluster import Cluster, Process

_IN_ENGINE = frozenset({"conditioning", "denoising", "decoding"})


@dataclass(frozen=True, slots=True)
class Holding:
    """A job that a slot holds: its attempt, the slot's process, and what it is doing."""

    job_id: str
    attempt_id: str
    slot_pid: int
    stage: str


@dataclass(frozen=True, slots=True)
class Victim:
    """A process to kill, and the jobs (job id, attempt id) that it holds."""

    pid: int
    process: Process | None  # one of ours, or None: its supervisor starts it again
    jobs: tuple[tuple[str, str], ...]


def held(redis: Redis) -> Iterator[Holding]:
    """Jobs that slots hold, as Redis has it; some of the slots may be dead."""
    members: Any = redis.zrange(Keys().leases, 0, -1)
    for member in members:
        job_id, _, attempt_id = member.decode().rpartition(":")
        entry = _entry(redis, job_id)
        if entry is None or entry.owner != attempt_id:
            continue
        pid: Any = redis.hget(f"rq:worker:{entry.attempts[-1].worker}", "pid")
        stage = entry.progress.stage if entry.progress else ""
        yield Holding(job_id, attempt_id, int(pid or 0), stage)


def _entry(redis: Redis, job_id: str) -> Entry | None:
    return Jobs(redis, Keys().prefix)(calls.look([job_id]))[0].entry


def released(redis: Redis, job_id: str, attempt_id: str) -> bool:
    """Whether this attempt no longer holds the job: it waits, another has it, or it has ended."""
    entry = _entry(redis, job_id)
    return entry is None or entry.owner != attempt_id


def generated(redis: Redis, job_id: str, attempt_id: str) -> bool:
    """Whether an attempt has ended with its song."""
    entry = _entry(redis, job_id)
    attempts = entry.attempts if entry else ()
    return any(attempt.id == attempt_id and attempt.outcome is AttemptOutcome.SUCCEEDED for attempt in attempts)


def slot_victims(cluster: Cluster) -> Iterator[Victim]:
    for holding in held(cluster.redis):
        if _worker_of(cluster, holding.slot_pid):
            jobs = tuple(
                (each.job_id, each.attempt_id) for each in held(cluster.redis) if each.slot_pid == holding.slot_pid
            )
            yield Victim(holding.slot_pid, None, jobs)


def supervisor_victims(cluster: Cluster) -> Iterator[Victim]:
    held_now = list(held(cluster.redis))
    for worker in cluster.workers:
        jobs = tuple((it.job_id, it.attempt_id) for it in held_now if _worker_of(cluster, it.slot_pid) is worker)
        if jobs and worker.running:
            yield Victim(worker.running.pid, worker, jobs)


def engine_victims(cluster: Cluster) -> Iterator[Victim]:
    for holding in held(cluster.redis):
        worker = _worker_of(cluster, holding.slot_pid)
        if worker is None or worker.running is None or holding.stage not in _IN_ENGINE:
            continue
        for child in psutil.Process(worker.running.pid).children():
            if "tests.engines" in child.cmdline():
                yield Victim(child.pid, None, ((holding.job_id, holding.attempt_id),))


def gateway_victims(cluster: Cluster, open_requests: dict[str, int]) -> Iterator[Victim]:
    """Gateways with requests under way."""
    for gateway, url in zip(cluster.gateways, cluster.urls, strict=True):
        if open_requests.get(url) and gateway.running:
            yield Victim(gateway.running.pid, gateway, ())


def controller_victims(cluster: Cluster, lost: set[tuple[str, str]]) -> Iterator[Victim]:
    """The replica that leads, while a lost job waits to be found or an end to be reported."""
    waiting = [each for each in lost if not released(cluster.redis, *each)]
    if not waiting and not cluster.redis.zcard(Keys().webhooks):
        return
    for controller, url in zip(cluster.controllers, cluster.metrics, strict=True):
        if controller.running and _leads(url):
            yield Victim(controller.running.pid, controller, tuple(waiting))


def valkey_victims(cluster: Cluster) -> Iterator[Victim]:
    if cluster.valkey.running and any(held(cluster.redis)) and cluster.redis.zcard(Keys().live) > 1:
        yield Victim(cluster.valkey.running.pid, cluster.valkey, ())


def store_victims(cluster: Cluster) -> Iterator[Victim]:
    """While songs are generated that it must take."""
    if cluster.store.running and any(_worker_of(cluster, each.slot_pid) for each in held(cluster.redis)):
        yield Victim(cluster.store.running.pid, cluster.store, ())


def leads(cluster: Cluster) -> bool:
    """Whether some replica of the controller leads."""
    return any(it.running and _leads(url) for it, url in zip(cluster.controllers, cluster.metrics, strict=True))


def _leads(url: str) -> bool:
    try:
        return "serinette_controller_leading 1.0" in httpx.get(url, timeout=5).text
    except httpx.HTTPError:
        return False


def _worker_of(cluster: Cluster, slot_pid: int) -> Process | None:
    """The worker whose living slot has this process id."""
    try:
        parent = psutil.Process(slot_pid).ppid()
    except (psutil.Error, ValueError):
        return None
    return next((worker for worker in cluster.workers if worker.running and worker.running.pid == parent), None)
