"""What the transitions keep beside a job's record: leases that never run out, and what a batch reads of its jobs."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from serinette.job import JobStatus
from serinette.jobs import Jobs, Lease, Outcome, Standing, calls
from serinette.names import Keys
from tests.jobs import TENANT, entry, submit, take

KEYS = Keys()


@pytest.fixture
def jobs(redis: Redis) -> Jobs:
    return Jobs(redis, KEYS.prefix)


def owner_of(jobs: Jobs, job_id: str) -> str:
    found = entry(jobs, job_id).owner
    assert found
    return found


def test_a_lease_for_ever_is_never_overdue_nor_shortened(jobs: Jobs) -> None:
    container, song = submit(jobs), submit(jobs)
    assert take(jobs, container, slot="controller-containers", lease_s=0)
    assert take(jobs, song, lease_s=0.001)
    for_ever = Lease("controller-containers", 0)
    jobs(calls.beat(container, owner_of(jobs, container), for_ever, '{"stage":"computing"}'))
    assert jobs(calls.overdue(0.001)) == [], "the first watch gives every lease another life"
    jobs.redis.set("rq:serinette:watched", jobs.redis.time()[0] + 60)  # the clock went back
    assert jobs(calls.overdue(0.001)) == []
    jobs(calls.lapse("worker.0.1"))
    found = jobs(calls.overdue(1000))
    assert [job_id for job_id, _ in found] == [song]
    assert jobs.redis.zscore(KEYS.leases, f"{container}:{owner_of(jobs, container)}") == float("inf")
    held = jobs(calls.release(container, owner_of(jobs, container), None, charged=False, if_overdue=True))
    assert held is Standing.MINE
    assert jobs(calls.finish(container, "", Outcome(JobStatus.FAILED), recorded=True, if_overdue=True)).held


def members(redis: Redis, key: str) -> set[str]:
    found: Any = redis.smembers(key)
    return {each.decode() for each in found}


def test_a_batch_reads_which_of_its_jobs_run_and_which_have_ended(jobs: Jobs) -> None:
    running, ended = KEYS.batch_running("b"), KEYS.batch_ended("b")
    first, second, third = (submit(jobs, batch="b") for _ in range(3))
    submit(jobs)
    claimed = take(jobs, first)
    assert claimed and take(jobs, second)
    assert members(jobs.redis, running) == {first, second}
    jobs(calls.release(second, owner_of(jobs, second), None, charged=False))
    assert members(jobs.redis, running) == {first}
    jobs(calls.finish(first, owner_of(jobs, first), Outcome(JobStatus.FAILED), recorded=True))
    jobs(calls.cancel(third, TENANT))
    assert members(jobs.redis, running) == set()
    assert members(jobs.redis, ended) == {first, third}
    assert not jobs(calls.shrink(entry(jobs, first))), "the batch has not entered it"
    jobs.redis.srem(ended, first)
    assert jobs(calls.shrink(entry(jobs, first)))


def test_only_the_attempt_in_charge_adds_to_its_log(jobs: Jobs) -> None:
    job_id = submit(jobs)
    assert take(jobs, job_id, lease_s=0)
    owner = owner_of(jobs, job_id)
    for after, lines, last in (("", "one\n", "1"), ("", "twice\n", "9"), ("1", "two\n", "2")):
        assert jobs(calls.log(job_id, owner, after, (lines, last), "{}")) is Standing.MINE
    assert jobs(calls.log(job_id, "another", "2", ("three\n", "3"), "{}")) is Standing.LOST
    assert jobs.redis.get(KEYS.log(job_id)) == b"one\ntwo\n"
    assert jobs(calls.note(job_id, "another", "placed", "another")) is Standing.LOST
    assert jobs(calls.note(job_id, owner, "placed", owner)) is Standing.MINE
    assert entry(jobs, job_id).placed == owner
    assert jobs(calls.note("nowhere", "a", "placed", "a")) is Standing.UNKNOWN
    assert not jobs.redis.exists(KEYS.job("nowhere"))
