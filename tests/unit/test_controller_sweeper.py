"""Every state that a killed process leaves, and what one round of the sweeper makes of it; on a real Valkey."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from controller.sweep_plan import Action
from controller.unrecorded import StoreCalls
from serinette.errors import StoreUnavailable
from serinette.job import AttemptOutcome, JobStatus
from serinette.jobs import AttemptState, Outcome, calls
from serinette.names import Keys, Lane
from serinette.pools import PoolFacts
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.jobs import charged_attempts
from tests.unit.controller_bench import RETENTION_S, Bench, Counted


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def break_store(tmp_path: Path) -> Path:
    """A file where a directory was: reading below it fails, even for root."""
    broken = tmp_path / "store" / "songs"
    broken.rename(tmp_path / "songs") if broken.exists() else None
    broken.write_text("not a directory")
    return broken


def rq_job(bench: Bench, job_id: str) -> RqJob:
    return RqJob.fetch(job_id, bench.redis, JSONSerializer)


# -- lost attempts


def test_a_lost_worker_costs_an_attempt_and_the_job_goes_to_the_front(bench: Bench) -> None:
    job_id = bench.lost()
    behind = bench.submit()
    assert bench.sweep() == [Action.RETRY]
    assert bench.board.waiting() == [job_id, behind]
    entry, job = bench.entry(job_id), rq_job(bench, job_id)
    [attempt] = entry.attempts
    assert (entry.status, entry.owner, attempt.outcome) == (JobStatus.QUEUED, None, AttemptOutcome.FAILED)
    assert attempt.error and attempt.error.code == "worker_lost" and attempt.error.retryable
    assert "pod-1.0.abc" in attempt.error.message
    assert (job.get_status(), job.started_at, job.worker_name, job.retries_left) == ("queued", None, None, 1)
    assert bench.board.events(job_id) == ["started", "attempt"]
    assert bench.redis.keys("rq:execution*") == []
    assert bench.redis.smembers(bench.keys.busy("default")) == set()
    assert bench.sweep() == []


def test_the_last_attempt_lost_fails_the_job_with_the_reason(bench: Bench) -> None:
    job_id = bench.lost(attempts=2)
    assert bench.sweep() == [Action.RETRY]
    bench.begin(job_id)
    bench.pass_leases()
    assert bench.sweep() == [Action.FAIL, Action.RECORD]
    bench.assert_over(job_id, JobStatus.FAILED)
    entry, record = bench.entry(job_id), bench.record(job_id)
    assert entry.error and entry.error.code == "worker_lost" and "attempt 2" in entry.error.message
    assert [attempt.outcome for attempt in entry.attempts] == [AttemptOutcome.FAILED] * 2
    assert record and record.error == entry.error, "a song that is recorded from now on comes too late"


def test_a_recorded_song_is_never_given_up(bench: Bench) -> None:
    last, early, canceled = bench.submit(attempts=1), bench.submit(), bench.submit()
    for job_id in (last, early, canceled):
        bench.begin(job_id)
        bench.song(job_id)
    bench.board.cancel(canceled)
    bench.pass_leases()
    assert bench.sweep() == [Action.FINISH] * 3
    for job_id in (last, early, canceled):
        bench.assert_over(job_id, JobStatus.SUCCEEDED)
        result = bench.entry(job_id).result
        assert result and result.artifacts[0].key.endswith("a-0.mp3")


def test_a_cancel_during_the_loss_is_honored(bench: Bench) -> None:
    job_id = bench.lost()
    bench.board.cancel(job_id)
    assert bench.sweep() == [Action.CANCEL]
    bench.assert_over(job_id, JobStatus.CANCELED)
    assert bench.entry(job_id).attempts[0].outcome is AttemptOutcome.CANCELED
    record = bench.record(job_id)
    assert record and record.status is JobStatus.CANCELED


def test_a_cancel_that_comes_with_the_release_ends_the_job_also_while_no_worker_is_up(bench: Bench) -> None:
    """Between the sweeper's look and its release."""
    job_id = bench.submit()
    owner = bench.begin(job_id).entry.owner or ""
    bench.board.cancel(job_id)
    assert bench.board.jobs(calls.release(job_id, owner, None, charged=False)) is AttemptState.LOST
    assert bench.sweep() == [Action.RECORD]
    bench.assert_over(job_id, JobStatus.CANCELED)
    assert bench.board.waiting() == []


def test_what_a_dead_slot_holds_is_found_at_once_and_nothing_else_is(bench: Bench) -> None:
    dead, alive = bench.submit(), bench.submit()
    bench.begin(dead, "pod-1.0.abc")
    bench.begin(alive, "pod-1.1.def")
    assert bench.sweep() == []
    bench.board.jobs(calls.lapse("pod-1.0.abc"))
    assert bench.sweep() == [Action.RETRY]
    assert bench.board.waiting() == [dead]
    assert bench.board.claim("pod-1.0.abc") is None, "what it sent with its last breath takes nothing"


def test_after_an_outage_no_job_is_lost_whose_slot_could_not_beat(bench: Bench) -> None:
    job_id = bench.submit()
    bench.begin(job_id)
    for member in bench.board.leases():
        bench.redis.zadd(bench.keys.leases, {member: 1})
    bench.redis.delete("rq:serinette:watched")  # no replica has watched
    assert bench.sweep() == bench.sweep() == []
    assert bench.entry(job_id).status is JobStatus.RUNNING
    bench.pass_leases()
    assert bench.sweep() == [Action.RETRY]


def test_two_replicas_bring_on_each_job_once(bench: Bench, redis_url: str) -> None:
    lost = [bench.submit() for _ in range(12)]
    given_up = [bench.submit(attempts=1) for _ in range(12)]
    for number, job_id in enumerate([*lost, *given_up]):
        bench.begin(job_id, f"pod-1.{number}.abc")
    bench.pass_leases()
    counted = Counted()
    with Redis.from_url(redis_url) as one, Redis.from_url(redis_url) as other, ThreadPoolExecutor() as pool:
        for done in [pool.submit(bench.sweeper(client, counted)) for client in (one, other)]:
            done.result()
    assert sorted(bench.board.waiting()) == sorted(lost)
    assert sorted(each for each in counted.actions if each is not Action.RECORD) == (
        sorted([Action.RETRY] * 12 + [each for each in counted.actions if each in {Action.FAIL, Action.FINISH}])
    )
    assert sum(each in {Action.FAIL, Action.FINISH} for each in counted.actions) == 12
    for job_id in lost:
        assert (charged_attempts(bench.entry(job_id)), rq_job(bench, job_id).retries_left) == (1, 1)
        assert bench.board.events(job_id) == ["started", "attempt"]
    for job_id in given_up:
        bench.assert_over(job_id, JobStatus.FAILED)


def test_jobs_keep_their_lane_and_their_words(bench: Bench) -> None:
    spec = GenerationSpec(prompt="ジャズ", lyrics="la\nla", seed=9007199254740993, duration_s=5)
    job_id = bench.lost(lane=Lane.LOW, spec=spec)
    assert bench.sweep() == [Action.RETRY]
    assert (bench.board.waiting(Lane.LOW), bench.board.waiting()) == ([job_id], [])
    assert bench.entry(job_id).spec == spec
    job = rq_job(bench, job_id)
    assert (job.origin, job.timeout, job.result_ttl, job.failure_ttl) == ("default.low", 60, RETENTION_S, RETENTION_S)


def test_other_peoples_queues_are_left_alone(bench: Bench) -> None:
    bench.redis.sadd("rq:queues", "rq:queue:theirs")
    bench.redis.zadd("rq:wip:theirs", {"job:execution": 0})
    bench.redis.zadd("rq:finished:theirs", {"old": 1})
    bench.redis.rpush("rq:queue:theirs", "job")
    before = bench.board.state()
    bench.sweep()
    after = bench.board.state()
    assert {key: after[key] for key in before} == before


# -- a store that is away, a job that cannot be read


def test_a_store_that_is_away_holds_up_only_what_needs_it(bench: Bench, tmp_path: Path) -> None:
    last, retried, due = bench.submit(attempts=1), bench.submit(), bench.submit(start_deadline_s=60)
    for number, job_id in enumerate((last, retried)):
        bench.begin(job_id, f"pod-1.{number}.abc")
    bench.pass_leases()
    bench.redis.hset(bench.keys.job(due), "start_by", "1")
    bench.redis.zadd(bench.keys.deadlines, {due: 1})
    broken = break_store(tmp_path)
    counted = Counted()
    sweeper = bench.sweeper(counted=counted)
    sweeper()
    assert counted.actions == [Action.RETRY, Action.EXPIRE]
    assert bench.entry(last).status is JobStatus.RUNNING, "a song of it may lie there"
    broken.unlink()
    sweeper()
    assert bench.entry(last).status is JobStatus.RUNNING, "it is not asked again at once"
    assert bench.sweep() == [Action.FAIL, Action.RECORD]
    bench.assert_over(last, JobStatus.FAILED)


def test_a_store_that_hangs_is_waited_for_once(bench: Bench) -> None:
    answer = threading.Event()
    store_calls = StoreCalls(bench.store, wait_s=0.2, pause_s=60)
    begun = time.monotonic()
    try:
        found: list[Any] = store_calls.run([lambda _: answer.wait(30)] * 20)
        assert all(isinstance(each, StoreUnavailable) for each in found)
        assert all(isinstance(each, StoreUnavailable) for each in store_calls.run([lambda _: True] * 20))
        assert time.monotonic() - begun < 10, "each of them for itself would have taken minutes"
    finally:
        answer.set()


def test_one_slow_answer_does_not_make_the_store_away(bench: Bench) -> None:
    answer = threading.Event()
    store_calls = StoreCalls(bench.store, wait_s=0.2, pause_s=60)
    try:
        slow, quick = store_calls.run([lambda _: answer.wait(30), lambda _: True])
        assert isinstance(slow, StoreUnavailable)
        assert quick is True
        assert store_calls.run([lambda _: True]) == [True]
    finally:
        answer.set()


def test_a_job_that_cannot_be_read_holds_up_no_other(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    spoilt, unread, well = bench.submit(attempts=1), bench.submit(attempts=1), bench.submit()
    for number, job_id in enumerate((spoilt, unread, well)):
        bench.begin(job_id, f"pod-1.{number}.abc")
    bench.pass_leases()
    bench.redis.hset(bench.keys.job(spoilt), "attempt:1", "not JSON")
    bench.redis.hset(bench.keys.job(unread), "spec", '{"steps": "of a newer kind"}')
    counted = Counted()
    sweeper = bench.sweeper(counted=counted)
    for _ in range(3):
        sweeper()
    assert sorted(counted.actions) == [Action.FAIL, Action.LEAVE, Action.RETRY]
    assert caplog.text.count(f"job={spoilt} cannot be read or changed") == 1
    assert bench.entry(unread).status is JobStatus.FAILED, "it ends without a record in the store"
    assert bench.record(unread) is None
    assert bench.redis.zcard(bench.keys.unrecorded) == 0


@pytest.mark.parametrize("field", ["ttl_s", "created_at"])
def test_a_job_that_cannot_be_changed_holds_up_no_other(bench: Bench, field: str) -> None:
    """A foreign hand left half a record: transitions refuse it, and the round goes on."""
    spoilt, last, well = bench.submit(), bench.submit(attempts=1), bench.submit()
    late, in_time = (bench.submit(start_deadline_s=60) for _ in range(2))
    for number, job_id in enumerate((spoilt, last, well)):
        bench.begin(job_id, f"pod-1.{number}.abc")
    bench.pass_leases()
    for job_id in (late, in_time):
        past_deadline(bench, job_id)
    for job_id in (spoilt, late):
        bench.redis.hdel(bench.keys.job(job_id), field)
    counted = Counted()
    sweeper = bench.sweeper(counted=counted)
    for _ in range(2):
        sweeper()
    moved = [Action.EXPIRE, Action.FAIL, Action.LEAVE, Action.LEAVE, Action.RECORD, Action.RETRY]
    assert sorted(each for each in counted.actions if each is not Action.REQUEUE) == moved
    assert counted.rounds == 2
    assert bench.entry(spoilt).status is JobStatus.RUNNING
    bench.redis.hset(bench.keys.job(spoilt), field, bench.entry(well).fields[field])
    assert Action.RETRY in bench.sweep(), "once it is mended it goes on"


def test_jobs_that_are_left_as_they_are_hide_no_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("_LOST", "_DUE", "_STRANDED"):
        monkeypatch.setattr(f"controller.sweeper.{bound}", 1)
    old = GenerationSpec(prompt="jazz", model="old")
    spoilt = [bench.submit(), bench.submit(start_deadline_s=60), bench.submit(spec=old, lane=Lane.LOW)]
    well = [bench.submit(), bench.submit(start_deadline_s=60), bench.submit(spec=old, lane=Lane.LOW)]
    for number, jobs in enumerate((spoilt, well)):
        bench.begin(jobs[0], f"pod-1.{number}.abc")
        past_deadline(bench, jobs[1])
    bench.pass_leases()
    behind = next(member for member in bench.board.leases() if member.startswith(well[0]))
    bench.redis.zadd(bench.keys.leases, {behind: 1})
    bench.redis.zadd(bench.keys.deadlines, {well[1]: 2})
    bench.redis.hdel(bench.keys.job(spoilt[0]), "created_at")
    for job_id in spoilt[1:]:
        bench.redis.hset(bench.keys.job(job_id), "lane", "none of ours" if job_id is spoilt[1] else "low")
        bench.redis.hset(bench.keys.job(job_id), "spec", "{")
        bench.redis.hdel(bench.keys.job(job_id), "ttl_s")
    counted = Counted()
    sweeper = bench.sweeper(counted=counted, **REMOVED)
    for _ in range(4):
        sweeper()
    assert {Action.RETRY, Action.EXPIRE, Action.STRAND} <= {*counted.actions}


# -- start deadlines


def test_a_job_that_no_worker_began_in_time_ends_expired_without_any_worker(bench: Bench) -> None:
    in_time, late = bench.submit(start_deadline_s=60), bench.submit(start_deadline_s=60)
    assert bench.sweep() == []
    past_deadline(bench, late)
    assert bench.sweep() == [Action.EXPIRE, Action.RECORD]
    bench.assert_over(late, JobStatus.FAILED)
    entry, record = bench.entry(late), bench.record(late)
    assert entry.error and entry.error.code == "expired"
    assert record and (record.error, record.attempt, record.ended_at) == (entry.error, None, entry.ended_at)
    assert bench.sweep() == []
    assert bench.board.waiting() == [in_time]
    assert bench.redis.zrange(bench.keys.deadlines, 0, -1) == [in_time.encode()]


def past_deadline(bench: Bench, job_id: str) -> None:
    bench.redis.hset(bench.keys.job(job_id), "start_by", "1")
    bench.redis.zadd(bench.keys.deadlines, {job_id: 1})


def test_a_job_that_was_begun_in_time_is_left_alone_also_when_it_waits_again(bench: Bench) -> None:
    job_id = bench.submit(start_deadline_s=60)
    claimed = bench.begin(job_id)
    past_deadline(bench, job_id)
    assert bench.sweep() == []
    assert bench.redis.zcard(bench.keys.deadlines) == 0
    bench.board.jobs(calls.release(job_id, claimed.entry.owner or "", None, charged=False))
    past_deadline(bench, job_id)
    assert bench.sweep() == []
    assert bench.board.claim() is not None


def test_a_claim_that_comes_too_late_takes_nothing(bench: Bench) -> None:
    job_id = bench.submit(start_deadline_s=60)
    past_deadline(bench, job_id)
    assert bench.board.claim() is None
    assert bench.sweep() == [Action.EXPIRE, Action.RECORD]


def test_a_claim_and_the_sweep_at_once_end_the_job_one_way(bench: Bench, redis_url: str) -> None:
    for _ in range(10):
        job_id = bench.submit(start_deadline_s=60)
        seconds, micros = bench.redis.time()
        soon = seconds + micros / 1e6 + 0.003
        bench.redis.hset(bench.keys.job(job_id), "start_by", soon)
        bench.redis.zadd(bench.keys.deadlines, {job_id: soon})
        with ThreadPoolExecutor(2) as pool:
            claiming, sweeping = pool.submit(bench.board.claim), pool.submit(bench.sweep)
            claimed, swept = claiming.result(), sweeping.result()
        if claimed:
            assert Action.EXPIRE not in swept
            bench.board.finish(claimed, Outcome(JobStatus.CANCELED))
        else:
            bench.sweep()
            bench.assert_over(job_id, JobStatus.FAILED)


def test_ids_without_a_job_leave_the_index(bench: Bench) -> None:
    canceled = bench.submit(start_deadline_s=60)
    bench.board.cancel(canceled)
    bench.redis.zadd(bench.keys.deadlines, {"no job": 1, canceled: 1})
    assert bench.sweep() == [Action.RECORD]
    assert bench.redis.zcard(bench.keys.deadlines) == 0


# -- lanes


def test_what_was_taken_out_of_a_lane_waits_again(bench: Bench) -> None:
    ids = [bench.submit() for _ in range(3)]
    bench.redis.delete("rq:queue:default.normal")
    assert bench.sweep() == [Action.REQUEUE] * 3
    assert bench.redis.lrange("rq:queue:default.normal", 0, -1) == [job_id.encode() for job_id in ids]
    assert bench.sweep() == []


TURBO, BASE = PoolFacts(name="turbo", model="s3://models/turbo"), PoolFacts(name="base", model="s3://models/base")
REMOVED: dict[str, Any] = {"pools": (TURBO, BASE), "pool": "turbo", "rehome_after_s": 1e-9}


@pytest.mark.parametrize(("model", "pool"), [("base", "base"), ("turbo", "turbo"), (None, "turbo")])
def test_a_job_of_a_removed_pool_moves_in_its_lane(bench: Bench, model: str | None, pool: str) -> None:
    job_id = bench.submit(spec=GenerationSpec(prompt="jazz", model=model), lane=Lane.LOW)
    sweeper = bench.sweeper(**REMOVED)
    sweeper()
    sweeper()
    assert (bench.board.waiting(Lane.LOW), bench.board.waiting(Lane.LOW, pool)) == ([], [job_id])
    assert (rq_job(bench, job_id).origin, bench.entry(job_id).pool) == (f"{pool}.low", pool)
    assert bench.board.claim(pool=pool) is not None


def test_a_job_that_no_pool_takes_fails_and_no_frozen_attempt_can_finish_it(bench: Bench) -> None:
    old = GenerationSpec(prompt="jazz", model="old")
    never, begun, recorded = (bench.submit(spec=old) for _ in range(3))
    for job_id in (begun, recorded):
        bench.begin(job_id, f"pod-1.0.{job_id[:4]}")
    bench.song(recorded)
    for job_id in (begun, recorded):  # given up, and each may only be frozen
        entry = bench.entry(job_id)
        bench.board.jobs(calls.release(job_id, entry.owner or "", entry.lost(last=False), charged=True))
    counted = Counted()
    sweeper = bench.sweeper(counted=counted, **REMOVED)
    sweeper()
    sweeper()
    assert sorted(counted.actions) == sorted([Action.STRAND, Action.STRAND, Action.FINISH, Action.RECORD])
    for job_id in (never, begun):
        bench.assert_over(job_id, JobStatus.FAILED)
        error, record = bench.entry(job_id).error, bench.record(job_id)
        assert error and error.code == "pool_removed" and record and record.error == error
    bench.assert_over(recorded, JobStatus.SUCCEEDED)
