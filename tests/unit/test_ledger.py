"""The ledger on a real Valkey: one owner, one outcome, whatever the order of the callers."""

from __future__ import annotations

from typing import Any

from redis import Redis

from serinette.job import AttemptOutcome, JobError, JobStatus, Progress, Stage, now
from serinette.ledger import Ledger, Outcome
from serinette.names import Keys
from tests.pod import charged_attempts

LOST = JobError(code="worker_lost", message="gone", retryable=True)


def step(number: int) -> Progress:
    return Progress(stage=Stage.DENOISING, step=number, steps=8, at=now())


def test_a_job_from_claim_to_outcome(redis: Redis, keys: Keys) -> None:
    ledger = Ledger(redis, keys)
    ledger.open("job", "tenant", now())
    assert ledger.begin_attempt("job", "first", "worker-1") == 1
    assert ledger.progress("job", "first", step(1)) == 1
    ledger.end_attempt("job", "first", AttemptOutcome.FAILED, LOST)
    assert ledger.begin_attempt("job", "second", "worker-2") == 2
    assert ledger.settle("job", Outcome(JobStatus.SUCCEEDED))

    entry = ledger.read("job")
    assert entry.outcome is JobStatus.SUCCEEDED
    assert [attempt.outcome for attempt in entry.attempts] == [AttemptOutcome.FAILED, AttemptOutcome.SUCCEEDED]
    assert entry.attempts[0].error == LOST
    assert charged_attempts(entry) == 1
    assert redis.zcard(keys.live) == 0
    assert redis.ttl(keys.ledger("job")) > 0
    events: list[Any] = list(redis.xrange(keys.events("job")) or [])
    types = [fields[b"type"].decode() for _, fields in events]
    assert types == ["started", "progress", "attempt", "started", "succeeded"]


def test_a_late_attempt_changes_nothing(redis: Redis, keys: Keys) -> None:
    ledger = Ledger(redis, keys)
    ledger.begin_attempt("job", "late", "worker-1")
    ledger.end_attempt("job", "late", AttemptOutcome.FAILED, LOST)
    ledger.begin_attempt("job", "current", "worker-2")
    assert ledger.progress("job", "late", step(5)) == 0
    ledger.end_attempt("job", "late", AttemptOutcome.FAILED, LOST)
    assert ledger.read("job").owner == "current"
    assert ledger.settle("job", Outcome(JobStatus.SUCCEEDED))
    assert not ledger.settle("job", Outcome(JobStatus.FAILED, LOST))
    assert ledger.read("job").outcome is JobStatus.SUCCEEDED
    assert ledger.read("job").error is None
    assert ledger.begin_attempt("job", "too late", "worker-3") == 0


def test_a_claim_over_an_open_claim_supersedes_it(redis: Redis, keys: Keys) -> None:
    ledger = Ledger(redis, keys)
    ledger.open("job", "tenant", now())
    assert ledger.begin_attempt("job", "frozen", "worker-1") == 1
    assert ledger.begin_attempt("job", "second", "worker-2") == 2
    entry = ledger.read("job")
    assert (entry.tenant, entry.owner) == ("tenant", "second")
    assert [attempt.outcome for attempt in entry.attempts] == [AttemptOutcome.SUPERSEDED, AttemptOutcome.RUNNING]
    assert charged_attempts(entry) == 0


def test_cancel_is_durable_and_refuses_later_claims(redis: Redis, keys: Keys) -> None:
    ledger = Ledger(redis, keys)
    assert ledger.begin_attempt("job", "first", "worker-1") == 1
    assert ledger.request_cancel("job")
    assert ledger.progress("job", "first", step(1)) == -1
    assert ledger.begin_attempt("job", "second", "worker-2") == -1
    assert ledger.settle("job", Outcome(JobStatus.CANCELED))
    assert not ledger.request_cancel("job")


def test_settle_rides_in_a_transaction(redis: Redis, keys: Keys) -> None:
    ledger = Ledger(redis, keys)
    ledger.open("job", "tenant", now())
    with redis.pipeline(transaction=True) as pipe:
        assert not ledger.settle("job", Outcome(JobStatus.FAILED, LOST), pipeline=pipe)
        assert ledger.read("job").outcome is None
        assert pipe.execute() == [1]
    assert ledger.read("job").error == LOST


def test_forget_leaves_no_key(redis: Redis, keys: Keys) -> None:
    ledger = Ledger(redis, keys)
    ledger.open("job", "tenant", now())
    ledger.begin_attempt("job", "first", "worker-1")
    ledger.settle("job", Outcome(JobStatus.SUCCEEDED))
    ledger.forget("job", "tenant")
    left: list[Any] = redis.keys()
    assert [key for key in left if b"job" in key] == []
