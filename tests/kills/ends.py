"""What it means that a job has ended exactly once, and who sees to it when somebody died."""

from __future__ import annotations

from typing import Any

import pytest

from serinette.errors import NotFound
from serinette.job import JobStatus, Record, now
from serinette.names import record_key
from serinette.usage import Day, read_days
from tests.unit.maintenance_bench import TENANT, Bench, assert_over
from tests.unit.slot_bench import Slot, SlotBench


def rescue(bench: SlotBench, job_id: str) -> None:
    """Maintenance that has waited long enough, then a slot that is well."""
    slot: Slot | None = None
    for _ in range(6):
        maintenance = bench.rounds()
        maintenance()
        maintenance()
        if bench.entry(job_id).outcome:
            return
        slot = slot or bench.slot()
        if job_id in bench.waiting():
            slot.sing_one()


def recorded(bench: Bench, job_id: str) -> Record | None:
    """What the store says of a job."""
    try:
        return Record.model_validate_json(bench.store.get(record_key(TENANT, job_id)))
    except NotFound:
        return None


def today(bench: Bench) -> Day:
    """What was counted, of all jobs that ended."""
    return read_days(bench.redis, bench.keys, TENANT, [now().date()])[0]


def assert_ended_once(bench: Bench, job_id: str) -> JobStatus:
    """One outcome in both books, told by one event; a store that does not contradict it; songs that are there."""
    entry = bench.entry(job_id)
    assert entry.outcome
    assert entry.owner is None
    assert_over(bench, job_id, entry.outcome)
    record = recorded(bench, job_id)
    assert record is not None or entry.outcome is not JobStatus.SUCCEEDED
    if record:
        assert record.status is entry.outcome, "job.json says otherwise"
        for artifact in record.artifacts:
            assert bench.store.head(artifact.key).size_bytes == artifact.size_bytes
    if entry.outcome is JobStatus.SUCCEEDED:
        told: Any = bench.rq_job(job_id).return_value()
        assert record and told["artifacts"] == [artifact.model_dump(mode="json") for artifact in record.artifacts]
    return entry.outcome


def assert_counted_once(bench: Bench, job_ids: list[str]) -> None:
    """These jobs, and no others, are in their tenant's day; in its quotas there is none."""
    day, entries = today(bench), [bench.entry(job_id) for job_id in job_ids]
    for outcome in JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED:
        assert getattr(day, outcome) == sum(entry.outcome is outcome for entry in entries), outcome
    assert day.gpu_s == pytest.approx(sum(entry.usage.gpu_s for entry in entries if entry.usage), abs=0.01)
    for book in (bench.keys.in_flight(TENANT), bench.keys.running(TENANT)):
        assert bench.redis.zcard(book) == 0
