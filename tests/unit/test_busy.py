"""Who is busy, on a real Valkey: the set that KEDA counts, kept by the transitions that begin and end attempts."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from serinette.job import JobStatus, now
from serinette.jobs import AttemptState, Outcome, calls
from serinette.jobs.submission import rq_fields_of
from serinette.names import Keys
from serinette.presence import Presence, WorkerStage, announce
from tests.jobs import Board

POOL = "default"


def counted(redis: Redis, keys: Keys) -> set[str]:
    found: Any = redis.smembers(keys.busy(POOL))
    return {member.decode() for member in found}


@pytest.mark.parametrize(
    ("slot", "worker"),
    [("pod-7f-abc123.0.fe12ab", "pod-7f-abc123"), ("host.domain-abc123.11.fe12ab", "host.domain-abc123"), ("w", None)],
)
def test_a_slot_belongs_to_the_worker_that_named_it(board: Board, slot: str, worker: str | None) -> None:
    board.submit()
    board.claim(slot)
    assert counted(board.redis, board.keys) == ({worker} if worker else set())


def test_a_worker_is_busy_from_its_first_claim_to_its_last_end(board: Board) -> None:
    for _ in range(3):
        board.submit()
    first, second, other = board.claim("pod-a1.0.x"), board.claim("pod-a1.1.y"), board.claim("pod-b2.0.z")
    assert first and second and other
    seen = [counted(board.redis, board.keys)]
    for claimed in (second, other, first):
        board.finish(claimed, Outcome(JobStatus.FAILED))
        seen.append(counted(board.redis, board.keys))
    assert seen == [{"pod-a1", "pod-b2"}, {"pod-a1", "pod-b2"}, {"pod-a1"}, set()]
    assert not board.redis.keys("*:held:*")


@pytest.mark.parametrize("end", ["release", "cancel and learn of it", "lease"])
def test_a_job_that_its_worker_no_longer_holds_leaves_no_worker_busy(board: Board, end: str) -> None:
    job_id = board.submit()
    claimed = board.claim("pod-a1.0.x")
    assert claimed
    if end == "release":
        board.jobs(calls.release(job_id, claimed.entry.owner or "", None, charged=False))
    elif end == "lease":
        board.redis.set("rq:serinette:watched", board.redis.time()[0])
        board.lapse_leases()
        board.jobs(calls.release(job_id, claimed.entry.owner or "", None, charged=True, if_overdue=True))
    else:  # by the store, for another attempt; it is busy until it learns of it
        board.jobs(calls.finish(job_id, "", Outcome(JobStatus.CANCELED), recorded=True))
        assert counted(board.redis, board.keys) == {"pod-a1"}
        assert board.beat(claimed) is AttemptState.LOST
    assert counted(board.redis, board.keys) == set()


def test_a_superseded_attempt_that_reports_nothing_is_not_busy_for_ever(board: Board) -> None:
    job_id = board.submit()
    assert board.claim("pod-a1.0.x")
    board.jobs(calls.finish(job_id, "", Outcome(JobStatus.CANCELED), recorded=True))
    board.jobs(calls.overdue(20))
    board.lapse_leases()
    assert board.jobs(calls.overdue(20)) == []
    assert counted(board.redis, board.keys) == set()


def test_a_job_that_redis_lost_makes_its_worker_busy_again(board: Board) -> None:
    board.submit()
    claimed = board.claim("pod-a1.0.x")
    assert claimed
    board.redis.flushdb()
    assert board.beat(claimed) is AttemptState.UNKNOWN
    entry = claimed.entry
    rq_fields = rq_fields_of(entry.id, entry.pool, entry.lane, "song", (60, 60, 3))
    board.jobs(calls.resume(entry, entry.owner or "", board.lease_of(claimed), rq_fields))
    assert counted(board.redis, board.keys) == {"pod-a1"}
    board.finish(claimed, Outcome(JobStatus.FAILED))
    assert counted(board.redis, board.keys) == set()


def test_a_worker_that_drains_keeps_no_place_while_it_works(redis: Redis, keys: Keys) -> None:
    redis.sadd(keys.busy(POOL), "w")
    presence = Presence(name="w", pool=POOL, stage=WorkerStage.READY, slots=1, busy_slots=1, started_at=now())
    announce(redis, keys, presence)
    assert counted(redis, keys) == {"w"}
    announce(redis, keys, presence.model_copy(update={"stage": WorkerStage.DRAINING}))
    assert counted(redis, keys) == set()
