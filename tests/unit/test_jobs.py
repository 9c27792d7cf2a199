"""The transitions on a real Valkey: one attempt in charge, one end, whatever the order of the callers."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from redis.exceptions import ResponseError
from rq.suspension import resume, suspend

from serinette.credentials import Limits
from serinette.job import AttemptOutcome, JobError, JobStatus
from serinette.jobs import AttemptState, Call, Claimed, Entry, Lease, Outcome, Shrunk, calls, rq_fields_of
from serinette.jobs.finishing import record_of
from serinette.names import DEFAULT_POOL, Lane
from serinette.spec import GenerationSpec
from tests.jobs import TENANT, Board, assert_ended, charged_attempts, submission

LOST = JobError(code="worker_lost", message="gone", retryable=True)
STEP = '{"stage":"denoising","step":1,"steps":8,"at":"2026-01-01T00:00:00Z"}'
SUCCEEDED, FAILED, CANCELED = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED


def held(board: Board, slot: str | None = None) -> Any:
    claimed = board.claim(slot)
    assert claimed
    return claimed


def attempt_of(claimed: Any) -> str:
    return str(claimed.entry.owner)


def test_a_job_from_submit_to_end(board: Board) -> None:
    job_id = board.submit(labels={"album": "blue"})
    first = held(board)
    assert (first.number, board.beat(first, STEP)) == (1, AttemptState.MINE)
    assert board.jobs(calls.release(job_id, attempt_of(first), LOST, charged=True, gpu_s=1.5)) is AttemptState.RELEASED
    second = held(board)
    board.finish(second, Outcome(FAILED, LOST, gpu_s=2.0))

    entry = board.entry(job_id)
    assert [attempt.outcome for attempt in entry.attempts] == [AttemptOutcome.FAILED] * 2
    assert (entry.attempts[0].error, entry.error, charged_attempts(entry)) == (LOST, LOST, 2)
    assert entry.usage and entry.usage.gpu_s == 3.5
    assert board.events(job_id) == ["started", "progress", "attempt", "started", "failed"]
    assert_ended(board, job_id, FAILED)


def test_no_attempt_begins_while_rq_is_suspended_and_a_claim_that_was_lost_is_answered(board: Board) -> None:
    running, waiting = board.submit(), board.submit()
    first = held(board)
    lease = board.lease_of(first)
    suspend(board.redis)
    assert board.claim() is None
    assert board.jobs(calls.take(waiting, "attempt", lease)) is False
    again = board.jobs(calls.claim(attempt_of(first), lease, DEFAULT_POOL, list(Lane)))
    assert isinstance(again, Claimed)
    assert again.entry.id == running
    assert board.beat(first) is AttemptState.MINE
    resume(board.redis)
    assert held(board).entry.id == waiting


def test_lanes_are_served_in_the_order_that_is_asked_for_and_each_from_its_front(board: Board) -> None:
    low, normal, behind, high = (board.submit(lane=lane) for lane in (Lane.LOW, Lane.NORMAL, Lane.NORMAL, Lane.HIGH))
    taken = held(board)
    assert taken.entry.id == high
    board.jobs(calls.release(high, attempt_of(taken), None, charged=False))
    assert [held(board).entry.id for _ in range(4)] == [high, normal, behind, low]
    assert board.claim() is None


def test_a_released_job_goes_to_the_front(board: Board) -> None:
    first, second = board.submit(), board.submit()
    claimed = held(board)
    board.jobs(calls.release(first, attempt_of(claimed), None, charged=False))
    assert board.waiting() == [first, second]
    assert [seen.place for seen in board.jobs(calls.look([first, second]))] == [0, 1]


def test_a_late_attempt_changes_nothing(board: Board) -> None:
    job_id = board.submit()
    late = held(board)
    board.jobs(calls.release(job_id, attempt_of(late), LOST, charged=True))
    assert board.beat(late, STEP) is AttemptState.WAITS
    current = held(board)
    assert board.beat(late, STEP) is AttemptState.LOST
    assert board.jobs(calls.release(job_id, attempt_of(late), LOST, charged=True)) is AttemptState.LOST
    board.finish(late, Outcome(FAILED, LOST))
    assert board.entry(job_id).owner == attempt_of(current)
    board.finish(current, Outcome(CANCELED))
    board.finish(late, Outcome(FAILED, LOST))
    assert board.entry(job_id).error is None
    assert_ended(board, job_id, CANCELED)


def test_what_the_store_recorded_counts_and_the_attempt_in_charge_is_superseded(board: Board) -> None:
    """A song of an earlier attempt came to the store: its record ends the job, whichever attempt holds it now."""
    job_id = board.submit()
    early = held(board, "pod-1.0.early")
    board.jobs(calls.release(job_id, attempt_of(early), LOST, charged=True))
    current = held(board, "pod-2.0.current")
    finished = board.jobs(calls.finish(job_id, attempt_of(early), Outcome(SUCCEEDED), recorded=True))
    assert (finished.status, finished.decided) == (SUCCEEDED, True)
    assert board.entry(job_id).attempts[1].outcome is AttemptOutcome.SUPERSEDED
    # The worker is busy until it learns of it.
    assert board.redis.smembers(board.keys.busy("default")) == {b"pod-2"}
    assert board.beat(current) is AttemptState.LOST
    assert board.redis.smembers(board.keys.busy("default")) == set()
    assert_ended(board, job_id, SUCCEEDED)


def test_an_end_that_the_store_does_not_hold_is_for_the_attempt_in_charge_alone(board: Board) -> None:
    job_id = board.submit()
    claimed = held(board)
    for attempt in ("", "another"):
        assert board.jobs(calls.finish(job_id, attempt, Outcome(FAILED, LOST), recorded=False)).held
    assert board.beat(claimed) is AttemptState.MINE


def test_a_cancel_outlives_its_message_and_a_queued_job_ends_at_once(board: Board) -> None:
    running, waiting = board.submit(), board.submit()
    claimed = held(board)
    assert [board.cancel(running), board.cancel(waiting)] == ["running", "canceled"]
    assert board.beat(claimed) is AttemptState.CANCEL
    assert board.claim() is None
    assert_ended(board, waiting, CANCELED)
    board.finish(claimed, Outcome(CANCELED))
    assert_ended(board, running, CANCELED)
    assert board.cancel(running) == "canceled"
    assert board.cancel(running, "another") == "unknown"


def test_a_job_that_is_called_off_never_begins(board: Board) -> None:
    error = JobError(code="canceled", message="the batch was canceled")
    assert board.jobs(calls.call_off("j1", TENANT, error, 60))
    assert board.jobs(calls.call_off("j1", TENANT, error, 60))
    known = board.jobs(calls.submit(submission("j1"))).known
    assert known and known.status is CANCELED
    assert board.claim() is None
    submitted = board.submit()
    assert not board.jobs(calls.call_off(submitted, TENANT, error, 60))
    assert board.entry(submitted).status is CANCELED


def test_the_same_attempt_claims_the_same_job_however_often_it_asks(board: Board) -> None:
    first, _ = board.submit(), board.submit()
    lease = calls.Lease("pod-1.0.a", 20)
    ask = calls.claim("attempt-1", lease, "default", list(Lane))
    answers = [board.jobs(ask) for _ in range(3)]
    assert [answer.entry.id for answer in answers if not isinstance(answer, bool)] == [first] * 3
    assert len(board.entry(first).attempts) == 1


def test_a_gap_between_two_watches_extends_every_lease(board: Board) -> None:
    job_id = board.submit()
    held(board)
    board.redis.zadd(board.keys.leases, dict.fromkeys(board.leases(), 1))
    assert board.jobs(calls.overdue(20)) == [], "the first look"
    (until,) = board.leases().values()
    assert until > board.redis.time()[0] + 15
    for clock in (-60, 60):  # the primary's successor has another clock
        board.redis.zadd(board.keys.leases, dict.fromkeys(board.leases(), 1))
        board.redis.set("rq:serinette:watched", board.redis.time()[0] - clock)
        assert board.jobs(calls.overdue(20)) == []
    board.redis.zadd(board.keys.leases, dict.fromkeys(board.leases(), 1))
    assert [found for found, _ in board.jobs(calls.overdue(20))] == [job_id]


def test_a_lease_that_was_renewed_meanwhile_is_not_taken(board: Board) -> None:
    job_id = board.submit()
    claimed = held(board)
    assert (
        board.jobs(calls.release(job_id, attempt_of(claimed), LOST, charged=True, if_overdue=True)) is AttemptState.MINE
    )
    ended = board.jobs(calls.finish(job_id, attempt_of(claimed), Outcome(FAILED), recorded=True, if_overdue=True))
    assert ended.held
    assert board.entry(job_id).owner == attempt_of(claimed)


def test_a_slot_gives_the_record_back_to_a_redis_that_lost_it(board: Board) -> None:
    job_id = board.submit(labels={"album": "blue"})
    claimed = held(board)
    before = claimed.entry
    board.redis.flushdb()  # this test's own server
    assert board.beat(claimed) is AttemptState.UNKNOWN
    rq_fields = rq_fields_of(job_id, "default", Lane.NORMAL, "song", (60, 3600, 3))
    resume = calls.resume(before, attempt_of(claimed), board.lease_of(claimed), rq_fields)
    assert [board.jobs(resume), board.jobs(resume)] == [AttemptState.MINE] * 2
    after = board.entry(job_id)
    assert (after.labels, after.owner, after.attempts) == (before.labels, before.owner, before.attempts)
    board.finish(claimed, Outcome(CANCELED))
    assert_ended(board, job_id, CANCELED)


@pytest.mark.parametrize(
    ("limits", "what", "count", "bound"),
    [
        (Limits(jobs_in_flight=2), "in_flight", 2, "2"),
        (Limits(queued_jobs=1), "queued", 1, "1"),
        (Limits(lanes=(Lane.HIGH,)), "lane", 0, "high"),
        (Limits(gpu_seconds_per_day=5), "gpu", 5.5, "5"),
    ],
)
def test_a_bound_refuses_before_anything_is_written(
    board: Board, limits: Limits, what: str, count: float, bound: str
) -> None:
    board.submit(), board.submit()
    held(board)
    ended = board.submit()
    board.cancel(ended)
    day = board.redis.time()[0] // 86_400
    board.redis.hset(board.keys.usage(TENANT, day), "gpu_s", "5.5")
    board.redis.set("rq:serinette:watched", 0)
    before = board.state()
    refused = board.jobs(calls.submit(submission(), limits=limits)).refused
    assert refused and (refused.what, refused.count, refused.bound.removesuffix(".0")) == (what, count, bound)
    assert board.state() == before


def test_a_token_for_each_job_wakes_one_slot_and_none_outlives_its_job(board: Board) -> None:
    wake = board.keys.wake("default")
    for _ in range(3):
        board.submit()
    assert board.redis.llen(wake) == 3
    held(board)
    assert board.redis.llen(wake) == 2
    board.redis.lpop(wake)  # as an idle slot takes one
    board.jobs(calls.claim("woken", calls.Lease("pod-1.0.a", 20), "default", list(Lane), woken=True))
    assert board.redis.llen(wake) == 1
    held(board)
    board.redis.rpush(wake, "1", "1")
    assert board.claim() is None
    assert board.redis.llen(wake) == 0


def test_a_server_that_forgot_the_script_is_given_it_again(board: Board) -> None:
    first = board.submit()
    board.redis.script_flush()
    second = board.submit()
    assert board.waiting() == [first, second]


def test_a_server_that_forgets_the_script_while_it_is_given_it_is_given_it_once_more(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.redis.script_flush()
    load, loaded = board.redis.script_load, []

    def forgotten(body: str) -> None:
        load(body)
        loaded.append(body)
        if len(loaded) == 3:  # it has started again
            board.redis.script_flush()

    monkeypatch.setattr(board.redis, "script_load", forgotten)
    job_id = board.submit()
    assert board.waiting() == [job_id]
    assert len(loaded) > 3


def test_an_ended_job_shrinks_and_is_still_known(board: Board) -> None:
    work = GenerationSpec(prompt="a long jazz piano", seed=1)
    job_id = board.submit(None, work, labels={"album": "blue"}, digest="d")
    claimed = held(board)
    assert not board.jobs(calls.shrink(board.entry(job_id))), "it runs"
    board.finish(claimed, Outcome(FAILED, LOST))
    assert not board.jobs(calls.shrink(board.entry(job_id))), "the store does not have it"
    board.jobs(calls.finish(job_id, attempt_of(claimed), Outcome(FAILED, LOST), recorded=True))
    assert not board.jobs(calls.shrink(board.entry(job_id))), "the sweeper has yet to look for songs that did not win"
    board.redis.zrem(board.keys.unrecorded, job_id)
    whole: Entry = board.entry(job_id)
    assert board.jobs(calls.shrink(whole))
    (seen,) = board.jobs(calls.look([job_id]))
    assert (seen.entry, seen.shrunk) == (None, Shrunk.of(whole))
    assert seen.shrunk and (seen.shrunk.prompt, seen.shrunk.labels) == ("a long jazz piano", {"album": "blue"})
    ended = board.jobs(calls.submit(submission(job_id))).ended
    assert ended and ended.digest == "d"
    assert board.beat(claimed) is AttemptState.LOST
    assert 0 < board.redis.ttl(board.keys.ended_job(job_id)) <= 3600
    left = [key for key in board.redis.scan_iter() if job_id.encode() in key]
    assert left == [board.keys.ended_job(job_id).encode()]
    assert board.jobs(calls.erase(job_id, TENANT))
    assert board.jobs(calls.look([job_id]))[0].shrunk is None
    assert board.redis.zcard(board.keys.jobs(TENANT)) == 0


def test_an_erased_job_never_comes_back(board: Board) -> None:
    """An attempt that was frozen through its job's end and erasure knows the whole record, and must not resume it."""
    job_id = board.submit()
    frozen = held(board)
    attempt_id = attempt_of(frozen)
    outcome = Outcome(FAILED, LOST)
    record = record_of(frozen.entry, frozen.entry.attempts[-1], outcome)
    board.jobs(calls.finish(job_id, "", outcome, recorded=True))
    assert board.jobs(calls.erase(job_id, TENANT))
    assert not board.jobs(calls.restore(record, 60)), "a restore read the record before it was erased"
    rq_fields = rq_fields_of(job_id, "default", Lane.NORMAL, "song", (60, 3600, 3))
    assert board.beat(frozen) is AttemptState.LOST
    assert board.jobs(calls.resume(frozen.entry, attempt_id, board.lease_of(frozen), rq_fields)) is AttemptState.LOST
    assert board.jobs(calls.release(job_id, attempt_id, LOST, charged=True)) is AttemptState.LOST
    board.finish(frozen, Outcome(FAILED, LOST))
    assert board.jobs(calls.look([job_id]))[0].entry is None
    left = {key for key in board.redis.scan_iter() if job_id.encode() in key}
    assert {key for key in left if board.redis.ttl(key) < 0} == set()
    assert board.submit(job_id) == job_id, "its owner may submit it again"
    assert board.beat(frozen) is AttemptState.LOST, "and it is another job"
    assert held(board).entry.id == job_id


def test_a_job_that_was_moved_begins_in_its_new_pool_alone(board: Board) -> None:
    jobs = [board.submit() for _ in range(300)]
    assert board.jobs(calls.move(jobs[150], "default", "turbo"))
    taken = {held(board).entry.id for _ in range(299)}
    assert taken == {*jobs} - {jobs[150]}
    assert board.claim() is None
    moved = board.claim(pool="turbo")
    assert moved and moved.entry.id == jobs[150]


@pytest.mark.parametrize("why", ["newer", "expired", "unreadable"])
def test_a_hundred_jobs_that_cannot_begin_do_not_block_their_lane(board: Board, why: str) -> None:
    stuck = [board.submit(start_deadline_s=1 if why == "expired" else None) for _ in range(100)]
    for job_id in stuck:
        record = board.keys.job(job_id)
        if why == "expired":
            board.redis.hset(record, "start_by", 1)
        else:
            board.redis.hset(record, "schema", "1000000" if why == "newer" else "x")
    good = board.submit()
    taken = board.claim() or board.claim()
    assert taken and taken.entry.id == good
    assert board.waiting() == stuck, "they wait for the sweeper, or for a slot that can read them"
    if why == "newer":
        board.redis.hset(board.keys.job(stuck[0]), "schema", 1)
        assert held(board).entry.id == stuck[0]


def test_a_late_heartbeat_revives_no_dead_slot(board: Board) -> None:
    board.submit()
    claimed = held(board, "pod-1.0.dead")
    board.jobs(calls.lapse("pod-1.0.dead"))
    board.beat(claimed)
    assert set(board.leases().values()) == {0}


def test_a_job_that_is_canceled_when_its_attempt_fails_reports_its_usage(board: Board) -> None:
    job_id = board.submit()
    claimed = held(board)
    board.cancel(job_id)
    board.jobs(calls.release(job_id, attempt_of(claimed), LOST, charged=True, gpu_s=50.0))
    found: Any = board.redis.xrevrange(board.keys.events(job_id), count=1)
    usage = board.entry(job_id).usage
    assert usage and usage.gpu_s == json.loads(found[0][1][b"data"])["usage"]["gpu_s"] == 50


def test_a_late_recording_ends_no_job_that_was_submitted_again(board: Board) -> None:
    job_id = board.submit()
    board.finish(held(board), Outcome(FAILED, LOST))
    first = board.entry(job_id)
    assert board.jobs(calls.recorded(first)) == "marked"
    assert board.jobs(calls.shrink(first))
    assert board.jobs(calls.recorded(first)) == "shrunk"
    board.jobs(calls.erase(job_id, TENANT))
    assert board.jobs(calls.recorded(first)) == "gone"
    board.submit(job_id)
    assert board.jobs(calls.recorded(first)) == "other"
    assert board.entry(job_id).status is JobStatus.QUEUED
    board.finish(held(board), Outcome(FAILED, LOST))
    assert board.jobs(calls.recorded(first)) == "other", "it ended as the first did, and the store says so of the first"
    second = board.entry(job_id)
    assert "recorded" not in second.fields
    assert board.jobs(calls.recorded(second)) == "marked"
    assert not board.jobs(calls.shrink(first))
    assert board.jobs(calls.shrink(second))


def test_a_claim_that_arrives_again_when_its_attempt_is_over_gets_no_job(board: Board) -> None:
    board.submit()
    lease = Lease("pod-1.0.abc", 20)
    claims = [calls.claim(f"attempt-{number}", lease, "default", list(Lane)) for number in range(3)]
    for number, claim in enumerate(claims[:2]):
        claimed = board.jobs(claim)
        assert isinstance(claimed, Claimed)
        assert board.jobs(claim) == claimed, "sent again"
        board.jobs(calls.release(claimed.entry.id, f"attempt-{number}", None, charged=False))
    assert [board.jobs(claim) for claim in claims[:2]] == [False, False]
    assert board.waiting() and board.leases() == {}
    assert isinstance(board.jobs(claims[2]), Claimed)


@pytest.mark.parametrize("field", ["ttl_s", "created_at", "lane", "tenant", "attempt:1"])
def test_what_a_foreign_hand_left_of_a_record_is_refused_as_a_whole(board: Board, field: str) -> None:
    waiting, job_id = board.submit(), board.submit()
    board.jobs(calls.take(job_id, "a", Lease("pod-1.0.abc", 20)))
    for each in (waiting, job_id):
        board.redis.hdel(board.keys.job(each), field)
    before = board.state()
    refused: list[Call[Any]] = [
        calls.finish(job_id, "a", Outcome(FAILED, LOST), recorded=False),
        calls.release(job_id, "a", LOST, charged=True),
        *([] if field == "tenant" else [calls.cancel(job_id, TENANT)]),
        *([] if field in {"tenant", "attempt:1"} else [calls.cancel(waiting, TENANT)]),
    ]
    for call in refused:
        with pytest.raises(ResponseError, match=field):
            board.jobs(call)
    assert board.state() == before
    if field != "attempt:1":
        good = board.submit()
        claimed = held(board)
        assert (claimed.entry.id, board.waiting()) == (good, []), "set aside"


@pytest.mark.parametrize(
    ("field", "value"), [("attempts", "x"), ("attempts", ""), ("start_by", "x"), ("charged", "1.5"), ("began", "nan")]
)
def test_a_field_of_another_hand_stops_a_transition_before_its_first_write(
    board: Board, field: str, value: str
) -> None:
    job_id = board.submit()
    released = held(board)
    board.jobs(calls.release(job_id, released.entry.owner or "", LOST, charged=True))
    board.redis.hset(board.keys.job(job_id), field, value)
    before = board.state()
    attempts: list[Call[Any]] = [
        calls.take(job_id, "att-2", Lease("pod-1.0.abc", 20)),
        calls.finish(job_id, "", Outcome(FAILED, LOST), recorded=True),
        calls.cancel(job_id, TENANT),
    ]
    for call in attempts:
        with suppress(ResponseError):
            board.jobs(call)
        assert board.state() == before
    assert board.claim() is None, "it is set aside, and holds up no other"
