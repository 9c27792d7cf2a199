"""Every broken state a killed process leaves, made by hand on a real Valkey, and what maintenance makes of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from redis import Redis
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.results import Result as RqResult

from api.maintenance.mend import Mender, Patient
from api.maintenance.plan import SUBMIT_GRACE_S, Action
from api.maintenance.reaper import Reaper
from serinette.errors import StoreUnavailable
from serinette.job import AttemptOutcome, JobStatus, Result, now
from serinette.ledger import Outcome
from serinette.names import Keys, Lane
from serinette.presence import bury_slot
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.pod import charged_attempts
from tests.unit.maintenance_bench import RETENTION_S, TENANT, Bench, assert_over


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def assert_waits_at_the_front(bench: Bench, job_id: str) -> None:
    assert bench.waiting()[0] == job_id
    assert bench.waiting().count(job_id) == 1
    assert (bench.held(), bench.entry(job_id).owner) == ([], None)
    job = bench.rq_job(job_id)
    assert (job.get_status(), job.started_at, job.worker_name) == (RqStatus.QUEUED, None, None)
    assert bench.redis.ttl(job.key) == -1


def test_a_lost_worker_costs_an_attempt_and_the_job_goes_to_the_front(bench: Bench) -> None:
    job_id, behind = bench.submit(), bench.submit()
    execution = bench.begin(job_id)
    assert bench.mend(job_id, execution) is Action.RETRY
    assert bench.waiting() == [job_id, behind]
    assert_waits_at_the_front(bench, job_id)
    attempt = bench.entry(job_id).attempts[0]
    assert attempt.outcome is AttemptOutcome.FAILED
    assert attempt.error is not None and attempt.error.code == "worker_lost" and attempt.error.retryable
    assert "worker-1" in attempt.error.message
    assert bench.rq_job(job_id).retries_left == 1
    assert bench.rq_job(job_id).kwargs["job_id"] == job_id
    assert bench.rq_job(job_id).meta == {"tenant": TENANT}
    assert bench.redis.keys("rq:execution*") == []
    assert bench.events(job_id) == ["started", "attempt"]
    bench.succeed(job_id, bench.begin(job_id, "attempt-b"))
    assert_over(bench, job_id, JobStatus.SUCCEEDED)


def test_the_last_attempt_lost_fails_the_job_with_the_reason(bench: Bench) -> None:
    job_id = bench.submit(attempts=2)
    assert bench.mend(job_id, bench.begin(job_id)) is Action.RETRY
    assert bench.mend(job_id, bench.begin(job_id, "attempt-b")) is Action.FAIL
    assert_over(bench, job_id, JobStatus.FAILED)
    entry = bench.entry(job_id)
    assert entry.error is not None and entry.error.code == "worker_lost" and "attempt 2" in entry.error.message
    assert [attempt.outcome for attempt in entry.attempts] == [AttemptOutcome.FAILED] * 2


def test_a_job_of_one_attempt_is_not_retried(bench: Bench) -> None:
    job_id = bench.submit(attempts=1)
    assert bench.mend(job_id, bench.begin(job_id)) is Action.FAIL
    assert_over(bench, job_id, JobStatus.FAILED)


def test_a_recorded_song_is_never_given_up(bench: Bench) -> None:
    job_id = bench.submit(attempts=1)
    execution = bench.begin(job_id)
    bench.record(job_id)
    assert bench.mend(job_id, execution) is Action.SUCCEED
    assert_over(bench, job_id, JobStatus.SUCCEEDED)
    latest = RqResult.fetch_latest(bench.rq_job(job_id), bench.rq_job(job_id).serializer)
    assert latest is not None
    assert Result.model_validate(latest.return_value).artifacts[0].key.endswith("a-0.mp3")
    assert bench.redis.ttl(f"rq:results:{job_id}") > 0


def test_a_cancel_during_the_loss_is_honored(bench: Bench) -> None:
    job_id = bench.submit()
    execution = bench.begin(job_id)
    bench.ledger.request_cancel(job_id)
    assert bench.mend(job_id, execution) is Action.CANCEL
    assert_over(bench, job_id, JobStatus.CANCELED)
    assert bench.entry(job_id).attempts[0].outcome is AttemptOutcome.CANCELED


def test_a_cancel_after_the_record_comes_too_late(bench: Bench) -> None:
    job_id = bench.submit()
    execution = bench.begin(job_id)
    bench.record(job_id)
    bench.ledger.request_cancel(job_id)
    assert bench.mend(job_id, execution) is Action.SUCCEED
    assert_over(bench, job_id, JobStatus.SUCCEEDED)


@pytest.mark.parametrize("status", [RqStatus.QUEUED, RqStatus.SCHEDULED, RqStatus.CREATED, RqStatus.STARTED])
def test_popped_and_lost_goes_back_and_costs_nothing(bench: Bench, status: RqStatus) -> None:
    job_id, behind = bench.submit(), bench.submit()
    bench.pop()
    bench.rq_job(job_id).set_status(status)
    assert bench.mend(job_id) is Action.PUT_BACK
    assert bench.waiting() == [job_id, behind]
    assert_waits_at_the_front(bench, job_id)
    assert (bench.entry(job_id).attempts, bench.rq_job(job_id).retries_left) == ((), 2)
    assert bench.mend(job_id) is Action.LEAVE


def test_a_job_scheduled_for_later_waits_and_a_due_one_goes_back(bench: Bench) -> None:
    job_id = bench.submit()
    bench.pop()
    bench.rq_job(job_id).set_status(RqStatus.SCHEDULED)
    scheduled = bench.queue().scheduled_job_registry.key
    bench.redis.zadd(scheduled, {job_id: now().timestamp() + 60})
    assert bench.mend(job_id) is Action.LEAVE
    bench.redis.zadd(scheduled, {job_id: now().timestamp() - 1})
    assert bench.mend(job_id) is Action.PUT_BACK
    assert_waits_at_the_front(bench, job_id)
    assert bench.redis.zcard(scheduled) == 0


def test_claimed_and_lost_before_it_was_held(bench: Bench) -> None:
    job_id = bench.submit()
    bench.pop()
    bench.claim(job_id)
    assert bench.mend(job_id) is Action.RETRY
    assert_waits_at_the_front(bench, job_id)
    assert charged_attempts(bench.entry(job_id)) == 1


def test_a_waiting_job_whose_attempt_was_never_ended_is_released(bench: Bench) -> None:
    job_id = bench.submit()
    bench.claim(job_id)
    assert bench.mend(job_id) is Action.RELEASE
    assert_waits_at_the_front(bench, job_id)
    assert bench.entry(job_id).attempts[0].outcome is AttemptOutcome.RETURNED


def test_a_decided_job_that_rq_takes_for_running_is_finished(bench: Bench) -> None:
    """A worker given up too soon comes back when another has sung, starts the job in RQ's books, and dies."""
    job_id = bench.submit()
    first = bench.begin(job_id)
    assert bench.mend(job_id, first) is Action.RETRY
    bench.succeed(job_id, bench.begin(job_id, "attempt-b"))
    zombie = bench.hold(job_id)
    assert bench.rq_job(job_id).get_status() is RqStatus.STARTED
    assert bench.mend(job_id, zombie) is Action.FINISH
    assert_over(bench, job_id, JobStatus.SUCCEEDED)
    latest = RqResult.fetch_latest(bench.rq_job(job_id), bench.rq_job(job_id).serializer)
    assert latest is not None and latest.type is RqResult.Type.SUCCESSFUL


@pytest.mark.parametrize("outcome", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED])
def test_an_outcome_is_carried_into_rq(bench: Bench, outcome: JobStatus) -> None:
    job_id = bench.submit()
    execution = bench.begin(job_id)
    bench.ledger.settle(job_id, Outcome(outcome))
    assert bench.mend(job_id, execution) is Action.FINISH
    assert_over(bench, job_id, outcome)


def test_a_wrong_end_in_rq_is_put_right(bench: Bench) -> None:
    job_id = bench.submit()
    execution = bench.begin(job_id)
    bench.ledger.settle(job_id, Outcome(JobStatus.SUCCEEDED))
    with bench.redis.pipeline() as pipe:
        bench.rq_job(job_id).set_status(RqStatus.FAILED, pipeline=pipe)
        bench.rq_job(job_id).failed_job_registry.add(bench.rq_job(job_id), ttl=RETENTION_S, pipeline=pipe)
        pipe.execute()
    assert bench.mend(job_id, execution) is Action.FINISH
    assert_over(bench, job_id, JobStatus.SUCCEEDED)
    assert bench.queue().failed_job_registry.get_job_ids(cleanup=False) == []


@pytest.mark.parametrize(
    ("rq", "outcome"),
    [
        (RqStatus.FINISHED, JobStatus.SUCCEEDED),
        (RqStatus.FAILED, JobStatus.FAILED),
        (RqStatus.STOPPED, JobStatus.CANCELED),
        (RqStatus.CANCELED, JobStatus.CANCELED),
    ],
)
def test_rqs_end_is_taken_over_by_a_ledger_that_missed_it(bench: Bench, rq: RqStatus, outcome: JobStatus) -> None:
    job_id = bench.submit()
    bench.pop()
    bench.rq_job(job_id).set_status(rq)
    assert bench.mend(job_id) is Action.ADOPT
    assert_over(bench, job_id, outcome)
    assert (bench.entry(job_id).error is not None) == (outcome is JobStatus.FAILED)


def test_a_submit_cut_short_is_forgotten_but_not_at_once(bench: Bench) -> None:
    bench.ledger.open("cut-short", TENANT, now())
    assert bench.mend("cut-short") is Action.LEAVE
    bench.redis.zincrby(bench.keys.live, -SUBMIT_GRACE_S - 1, "cut-short")
    assert bench.mend("cut-short") is Action.FORGET
    assert bench.redis.keys() == []


def test_a_job_that_redis_lost_but_the_store_has_is_settled(bench: Bench) -> None:
    job_id = bench.submit()
    bench.record(job_id)
    bench.redis.delete(RqJob.key_for(job_id))
    bench.redis.zincrby(bench.keys.live, -SUBMIT_GRACE_S - 1, job_id)
    assert bench.mend(job_id) is Action.SUCCEED
    assert (bench.entry(job_id).outcome, bench.live()) == (JobStatus.SUCCEEDED, [])


def test_an_execution_of_a_job_that_rq_lost_is_taken_out(bench: Bench) -> None:
    job_id = bench.submit()
    execution = bench.begin(job_id)
    bench.redis.delete(RqJob.key_for(job_id))
    bench.redis.zincrby(bench.keys.live, -SUBMIT_GRACE_S - 1, job_id)
    assert bench.mend(job_id) is Action.LEAVE  # it beats: its worker sings on and will put job.json
    assert bench.mend(job_id, execution) is Action.FORGET
    assert bench.held() == [] and bench.live() == []


def test_one_silent_execution_beside_a_beating_one_is_only_taken_out(bench: Bench) -> None:
    job_id = bench.submit()
    dead = bench.begin(job_id)
    alive = bench.hold(job_id)
    assert bench.mend(job_id, dead) is Action.LEAVE
    assert bench.held() == [job_id]
    assert bench.redis.zscore(bench.queue().started_job_registry.key, alive.composite_key) is not None
    assert bench.entry(job_id).owner == "attempt-a"


def test_a_beat_in_the_last_moment_saves_the_job(bench: Bench) -> None:
    job_id = bench.submit()
    execution = bench.begin(job_id)
    reaper = Reaper(bench.redis, bench.keys, heartbeat_ttl_s=20)
    assert reaper.find(0) == []
    for at in (5, 10, 15):
        assert reaper.find(at) == []
    time.sleep(1.1)  # RQ scores in whole seconds
    bench.beat(job_id, execution)
    assert reaper.find(20) == reaper.find(25) == reaper.find(30) == reaper.find(35) == []
    (patient,) = reaper.find(40)
    assert (patient.job_id, patient.lane) == (job_id, "default.normal")


def test_what_a_dead_slot_holds_is_found_at_once_and_nothing_else_is(bench: Bench) -> None:
    """Also what it sent with its last breath, which may come in behind the news of its death."""
    reaper = Reaper(bench.redis, bench.keys, heartbeat_ttl_s=20)
    held = [bench.submit() for _ in range(2)]
    executions = [bench.begin(held[0], worker="slot-a"), bench.begin(held[1], worker="slot-b")]
    assert reaper.find(0) == []
    bury_slot(bench.redis, bench.keys, "slot-a")
    (patient,) = reaper.find(1)
    assert (patient.job_id, patient.lane, list(patient.silent)) == (
        held[0],
        "default.normal",
        [executions[0].composite_key],
    )
    assert bench.mend(held[0], executions[0]) is Action.RETRY
    assert reaper.find(2) == []
    late = bench.submit()
    bench.redis.rpoplpush(bench.queue().key, bench.queue().key)
    bench.begin(late, worker="slot-a")
    assert [patient.job_id for patient in reaper.find(3)] == [late]
    assert bench.redis.ttl(bench.keys.dead_slots) > 0


def test_a_found_patient_that_beats_again_is_left_alone(bench: Bench) -> None:
    job_id = bench.submit()
    execution = bench.begin(job_id)
    wip = bench.queue().started_job_registry.key
    stale = {execution.composite_key: float(bench.redis.zscore(wip, execution.composite_key) or 0) - 7}
    assert Mender(bench.redis, bench.ledger, bench.store).mend(Patient(job_id, "default.normal", stale)) is Action.LEAVE
    assert bench.held() == [job_id]


def test_what_must_be_asked_of_the_store_waits_for_it(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.submit(attempts=1)
    execution = bench.begin(job_id)
    broken = tmp_path / "store" / "songs"
    broken.write_text("where a directory was: an error to whoever reads below it, even to root")
    with pytest.raises(StoreUnavailable):
        bench.mend(job_id, execution)
    assert bench.entry(job_id).outcome is None and bench.held() == [job_id]
    broken.unlink()
    assert bench.mend(job_id, execution) is Action.FAIL


def test_a_late_worker_changes_nothing_after_its_job_was_taken(bench: Bench) -> None:
    job_id = bench.submit()
    late = bench.begin(job_id, "late")
    assert bench.mend(job_id, late) is Action.RETRY
    bench.beat(job_id, late)
    assert bench.held() == []
    assert bench.waiting() == [job_id]
    bench.begin(job_id, "current")
    bench.ledger.end_attempt(job_id, "late", AttemptOutcome.FAILED)
    assert bench.entry(job_id).owner == "current"


def test_jobs_keep_their_lane_and_their_words(bench: Bench) -> None:
    spec = GenerationSpec(prompt="ジャズ", lyrics="la\nla", seed=3, duration_s=5)
    job_id = bench.submit(lane=Lane.LOW, spec=spec)
    bench.pop(Lane.LOW)
    bench.claim(job_id)
    assert bench.mend(job_id, bench.hold(job_id), lane=Lane.LOW) is Action.RETRY
    assert (bench.waiting(Lane.LOW), bench.waiting()) == ([job_id], [])
    job = bench.rq_job(job_id)
    assert GenerationSpec.from_wire(job.kwargs["spec"]) == spec
    assert (job.timeout, job.result_ttl, job.failure_ttl) == (60, RETENTION_S, RETENTION_S)
