"""Jobs that were erased, and others that were submitted with their ids: neither is taken for the other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from serinette.job import JobError, JobStatus, now
from serinette.jobs import Outcome, calls
from serinette.jobs.finishing import finish_as, record_of
from tests.jobs import TENANT, Board

LOST = JobError(code="worker_lost", message="gone", retryable=True)
QUEUED, RUNNING, SUCCEEDED, FAILED = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.FAILED


def held(board: Board) -> Any:
    claimed = board.claim()
    assert claimed
    return claimed


def attempt_of(claimed: Any) -> str:
    return str(claimed.entry.owner)


def test_an_end_of_an_erased_job_ends_no_job_that_was_submitted_again(board: Board) -> None:
    """The slot of the erased job was frozen, and its record lies in the store again."""
    job_id = board.submit(digest="d")
    frozen = held(board)
    late = record_of(frozen.entry, frozen.entry.attempts[-1], Outcome(SUCCEEDED))
    board.jobs(calls.finish(job_id, "", Outcome(FAILED, LOST), recorded=True))
    assert board.jobs(calls.erase(job_id, TENANT))
    assert finish_as(board.jobs, late).erased
    assert board.redis.zscore(board.keys.unrecorded, job_id), "the sweeper deletes what was put"
    board.submit(job_id, digest="d")
    running = held(board)
    assert finish_as(board.jobs, late, by=attempt_of(frozen)).erased
    entry = board.entry(job_id)
    assert (entry.status, entry.is_anothers(late)) == (RUNNING, True)
    ours = record_of(running.entry, running.entry.attempts[-1], Outcome(SUCCEEDED))
    assert finish_as(board.jobs, ours).decided
    assert finish_as(board.jobs, late).erased, "also after its end"


def test_an_end_of_another_request_with_the_same_id_does_not_count(board: Board) -> None:
    """Redis was lost, and the Idempotency-Key was used again with another spec."""
    job_id = board.submit(digest="d")
    first = held(board)
    late = record_of(first.entry, first.entry.attempts[-1], Outcome(SUCCEEDED))
    board.redis.flushdb()
    board.submit(job_id, digest="e")
    assert finish_as(board.jobs, late).erased
    assert (board.entry(job_id).status, board.entry(job_id).is_anothers(late)) == (QUEUED, True)
    board.redis.flushdb()
    board.submit(job_id, digest="d")
    assert finish_as(board.jobs, late).decided, "the same request: its song is there"


def test_an_end_that_retention_is_about_to_delete_does_not_count(board: Board) -> None:
    """The same request again, once Redis has forgotten the first and before the sweep of the store."""
    job_id = board.submit(digest="d", ttl_s=60)
    first = held(board)
    late = record_of(first.entry, first.entry.attempts[-1], Outcome(SUCCEEDED))
    board.redis.flushdb()
    board.submit(job_id, digest="d", ttl_s=60)
    entry = board.entry(job_id)
    assert not entry.is_anothers(late)
    for ago_s, another in ((59, False), (61, True)):
        assert entry.is_anothers(late.model_copy(update={"ended_at": now() - timedelta(seconds=ago_s)})) is another


def test_a_job_that_was_erased_by_a_faster_clock_can_be_submitted_again(board: Board) -> None:
    job_id = board.submit()
    assert board.cancel(job_id) == "canceled"
    assert board.jobs(calls.erase(job_id, TENANT))
    seconds, _ = board.redis.time()
    board.redis.set(board.keys.erased_job(job_id), f"{seconds + 60}.5 {TENANT}")
    board.submit(job_id)
    claimed = held(board)
    record = record_of(claimed.entry, claimed.entry.attempts[-1], Outcome(SUCCEEDED))
    assert finish_as(board.jobs, record).decided


def test_every_erased_job_is_remembered_for_hours(board: Board) -> None:
    """Also one that no attempt began: its record may be on its way into the store."""
    job_id = board.submit()
    board.cancel(job_id)
    assert board.jobs(calls.erase(job_id, TENANT))
    assert 0 < board.redis.ttl(board.keys.erased_job(job_id)) <= 6 * 3600
