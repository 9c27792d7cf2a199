"""What the transitions keep beside a job's record: leases that never run out, and what a batch reads of its jobs."""

from __future__ import annotations

import uuid
from typing import Any

from redis import Redis

from serinette.job import JobStatus
from serinette.jobs import AttemptState, Claimed, Lease, Outcome, calls
from serinette.names import Keys
from tests.jobs import TENANT, Board, submission

KEYS = Keys()


def take(board: Board, lease_s: float = 20.0, slot: str = "pod.0.test", **given: Any) -> tuple[str, str]:
    """A job that an attempt holds: ids of both."""
    job_id, attempt_id = board.submit(**given), uuid.uuid4().hex
    assert isinstance(board.jobs(calls.take(job_id, attempt_id, Lease(slot, lease_s))), Claimed)
    return job_id, attempt_id


def test_a_lease_for_ever_is_never_overdue_nor_shortened(board: Board) -> None:
    jobs, for_ever = board.jobs, Lease("controller-containers", 0)
    container, owner = take(board, for_ever.lease_s, for_ever.slot)
    song, _ = take(board)
    jobs(calls.beat(container, owner, for_ever, '{"stage":"computing"}'))
    assert jobs(calls.overdue(0.001)) == [], "the first watch gives every lease another life"
    jobs.redis.set("rq:serinette:watched", jobs.redis.time()[0] + 60)  # the clock went back
    assert jobs(calls.overdue(0.001)) == []
    jobs(calls.lapse("pod.0.test"))
    found = jobs(calls.overdue(1000))
    assert [job_id for job_id, _ in found] == [song]
    assert board.leases()[f"{container}:{owner}"] == float("inf")
    assert jobs(calls.release(container, owner, None, charged=False, if_overdue=True)) is AttemptState.MINE
    assert jobs(calls.finish(container, "", Outcome(JobStatus.FAILED), recorded=True, if_overdue=True)).held


def members(redis: Redis, key: str) -> set[str]:
    found: Any = redis.smembers(key)
    return {each.decode() for each in found}


def test_a_batch_reads_which_of_its_jobs_run_and_live_and_how_many_have_ended(board: Board) -> None:
    jobs, running, live = board.jobs, KEYS.batch_running("b"), KEYS.batch_live("b")
    board.redis.hset(KEYS.batch("b"), "header", "{}")
    first, first_owner = take(board, batch=("b", 4))
    second, second_owner = take(board, batch=("b", 2))
    third = board.submit(batch=("b", 3))
    board.submit()
    assert members(board.redis, running) == {first, second}
    assert board.redis.zrange(live, 0, -1) == [each.encode() for each in (second, third, first)]
    jobs(calls.release(second, second_owner, None, charged=False))
    assert members(board.redis, running) == {first}
    for _ in range(2):
        jobs(calls.finish(first, first_owner, Outcome(JobStatus.FAILED), recorded=True))
        jobs(calls.cancel(third, TENANT))
    assert members(board.redis, running) == set()
    assert board.redis.zrange(live, 0, -1) == [second.encode()]
    counted_before = board.submit(batch=("b", 5))
    board.redis.zrem(live, counted_before)
    jobs(calls.cancel(counted_before, TENANT))
    assert board.redis.hgetall(KEYS.batch("b")) == {b"header": b"{}", b"failed": b"1", b"canceled": b"1"}
    for job_id, line in ((second, 2), (first, 4)):
        jobs(calls.submit(submission(job_id, batch=("b", line))))
    assert board.redis.zrange(live, 0, -1) == [second.encode()], "one that has ended does not live again"
