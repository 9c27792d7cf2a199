"""A job that nobody began within its start deadline ends as expired: by maintenance, at its claim, and once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from redis import Redis

from api.maintenance.deadlines import Deadlines
from api.maintenance.mend import Mender
from api.maintenance.plan import Action
from api.queue import JobQueue
from api.settings import GatewaySettings
from serinette.job import Job, JobOptions, JobStatus, now
from serinette.ledger import Terms
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.unit.maintenance_bench import RETENTION_S, TENANT, assert_over
from tests.unit.slot_bench import SlotBench


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


@pytest.fixture
def queue(bench: SlotBench, redis_url: str, file_store_url: str) -> JobQueue:
    settings = GatewaySettings.model_validate(
        {"redis_url": redis_url, "store_url": file_store_url, "retention_s": RETENTION_S}
    )
    return JobQueue(bench.redis, bench.store, bench.ledger, settings)


def submit(queue: JobQueue, deadline_s: int = 60) -> Job:
    options = JobOptions(start_deadline_s=deadline_s)
    return queue.submit(TENANT, GenerationSpec(prompt="jazz"), options)[0]


def pass_deadline(bench: SlotBench, job_id: str) -> None:
    past = now().timestamp() - 1
    bench.redis.hset(bench.keys.ledger(job_id), "start_by", str(past))
    bench.redis.zadd(bench.keys.deadlines, {job_id: past}, xx=True)


def sweep(bench: SlotBench) -> list[Action]:
    mender = Mender(bench.redis, bench.ledger, bench.store)
    return [mender.mend(patient) for patient in Deadlines(bench.redis, bench.keys).find()]


def test_the_deadline_is_told(queue: JobQueue) -> None:
    job = submit(queue, 60)
    assert job.start_by
    assert 59 < (job.start_by - job.created_at).total_seconds() < 61
    assert queue.get(TENANT, job.id).start_by == job.start_by


def test_a_job_that_nobody_began_in_time_ends_expired_without_any_worker(bench: SlotBench, queue: JobQueue) -> None:
    in_time, late = submit(queue), submit(queue)
    assert sweep(bench) == []
    pass_deadline(bench, late.id)
    assert sweep(bench) == [Action.EXPIRE]
    job = queue.get(TENANT, late.id)
    assert job.status is JobStatus.FAILED
    assert job.error
    assert job.error.code == "expired"
    assert not job.error.retryable
    assert "start_deadline_s" in job.error.message
    assert_over(bench, late.id, JobStatus.FAILED)
    assert sweep(bench) == []
    assert bench.waiting() == [in_time.id]
    assert bench.redis.zrange(bench.keys.deadlines, 0, -1) == [in_time.id.encode()]


def test_a_job_that_was_begun_in_time_is_left_to_sing(bench: SlotBench, queue: JobQueue) -> None:
    job = submit(queue)
    slot = bench.slot()

    def late(_: object) -> None:
        pass_deadline(bench, job.id)
        assert sweep(bench) == []

    bench.engine.meanwhile = late
    slot.sing_one()
    assert queue.get(TENANT, job.id).status is JobStatus.SUCCEEDED
    assert bench.redis.zcard(bench.keys.deadlines) == 0


def test_an_attempt_that_failed_has_begun(bench: SlotBench, queue: JobQueue) -> None:
    """A retry, or a job that was handed back, has started: the deadline is of its first attempt."""
    job = submit(queue)
    slot = bench.slot()

    def fails(_: object) -> None:
        raise OSError("a disk is full")

    bench.engine.meanwhile = fails
    slot.sing_one()
    pass_deadline(bench, job.id)
    assert sweep(bench) == []
    bench.engine.meanwhile = lambda _: None
    slot.sing_one()
    assert queue.get(TENANT, job.id).status is JobStatus.SUCCEEDED


def test_a_claim_that_comes_too_late_expires_the_job_itself(bench: SlotBench, queue: JobQueue) -> None:
    job = submit(queue)
    pass_deadline(bench, job.id)
    slot = bench.slot()
    slot.sing_one()
    assert bench.engine.heard == []
    assert queue.get(TENANT, job.id).error
    assert_over(bench, job.id, JobStatus.FAILED)


def test_a_claim_and_the_sweep_at_once_end_the_job_one_way(bench: SlotBench, queue: JobQueue) -> None:
    """The claim began before the deadline: whichever transaction is first decides, and the other gives way."""
    for _ in range(10):
        job = submit(queue)
        slot = bench.slot()
        taken = slot.take_one()
        bench.redis.zadd(bench.keys.deadlines, {job.id: 1})
        soon = now() + timedelta(milliseconds=1)
        bench.redis.hset(bench.keys.ledger(job.id), "start_by", str(soon.timestamp()))
        with ThreadPoolExecutor(2) as pool:
            claim = pool.submit(slot.execute_job, *taken)
            swept = pool.submit(sweep, bench)
            claim.result()
            swept.result()
        entry = bench.entry(job.id)
        sung = bool(entry.attempts)
        assert entry.outcome is (JobStatus.SUCCEEDED if sung else JobStatus.FAILED)
        assert bool(bench.engine.heard) is sung
        assert_over(bench, job.id, entry.outcome)


def test_a_submit_cut_short_leaves_the_index(bench: SlotBench) -> None:
    bench.ledger.open("job-x", TENANT, now(), terms=Terms(start_by=now() - timedelta(seconds=1)))
    bench.ledger.forget("job-x", TENANT)
    assert sweep(bench) == []
    assert bench.redis.zcard(bench.keys.deadlines) == 0


def test_a_canceled_job_does_not_expire(bench: SlotBench, queue: JobQueue) -> None:
    job = submit(queue)
    queue.cancel(TENANT, job.id)
    pass_deadline(bench, job.id)
    assert sweep(bench) == []
    assert queue.get(TENANT, job.id).status is JobStatus.CANCELED
