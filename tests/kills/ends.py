"""What it means that a job has ended exactly once, and what ends it when a process died."""

from __future__ import annotations

import pytest
from redis import Redis

from controller.settings import ControllerSettings
from controller.sweeper import Sweeper
from serinette.job import JobStatus, Record, now
from serinette.jobs.finishing import find_record
from serinette.names import Keys
from serinette.store import Store
from serinette.usage import Day, day_number, day_of
from tests.jobs import TENANT, TTL_S, Board
from tests.unit.slot_bench import SlotBench


def sweep(redis: Redis, keys: Keys, store: Store) -> None:
    """One round of a controller that watched a whole lease pass without a heartbeat."""
    seconds, micros = redis.time()
    redis.set(f"{keys.prefix}:serinette:watched", seconds + micros / 1e6 - 1)
    Board(redis, keys).lapse_leases()
    Sweeper(redis, store, ControllerSettings(retention_s=TTL_S))()


def rescue(bench: SlotBench, job_id: str) -> None:
    """A controller that has waited long enough, then a healthy slot."""
    slot = None
    for _ in range(6):
        sweep(bench.redis, bench.keys, bench.store)
        if bench.entry(job_id).status.ended:
            return
        slot = slot or bench.slot()
        if job_id in bench.waiting():
            slot.run_one()


def recorded(bench: SlotBench, job_id: str) -> Record | None:
    """What the store says of a job."""
    return find_record(bench.store, TENANT, job_id)


def today(redis: Redis, keys: Keys) -> Day:
    """What was counted, of all jobs that ended."""
    date = now().date()
    return day_of(date, redis.hgetall(keys.usage(TENANT, day_number(date))))


def assert_ended_once(bench: SlotBench, job_id: str) -> JobStatus:
    """One outcome, reported by one event, RQ's view of it too; a store that says the same; songs that are there."""
    entry = bench.entry(job_id)
    assert entry.status.ended
    bench.assert_ended(job_id, entry.status)
    record = recorded(bench, job_id)
    for artifact in record.artifacts if record else ():
        assert bench.store.head(artifact.key).size_bytes == artifact.size_bytes
    return entry.status


def assert_counted_once(bench: SlotBench, job_ids: list[str]) -> None:
    """These jobs, and no others, are in their tenant's day; in its quotas there is none."""
    day, entries = today(bench.redis, bench.keys), [bench.entry(job_id) for job_id in job_ids]
    for outcome in JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED:
        assert getattr(day, outcome) == sum(entry.status is outcome for entry in entries), outcome
    assert day.gpu_s == pytest.approx(sum(entry.usage.gpu_s for entry in entries if entry.usage), abs=0.01)
    for index in (bench.keys.in_flight(TENANT), bench.keys.running(TENANT)):
        assert bench.redis.zcard(index) == 0
