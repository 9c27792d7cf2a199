"""Maintenance killed, or overtaken, at every round trip to Redis: the job still ends exactly once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from redis import Redis
from redis.connection import Connection, ConnectionPool

from api.maintenance.plan import SUBMIT_GRACE_S
from serinette.job import JobStatus, now
from serinette.ledger import Outcome
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.pod import charged_attempts
from tests.unit.maintenance_bench import TENANT, Bench, assert_over

# The pipeline of a dead client wants to say goodbye.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Killed(BaseException):
    """No handler of ours catches it, and nothing is sent after it: as after `kill -9`."""


def interrupted(url: str, round_trips: int, event: Callable[[], object]) -> Redis:
    """A client to which something happens when it would send for the n-th time, or later."""
    left = round_trips

    class Interrupted(Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                event()
            super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]  # redis-py's

    return Redis(connection_pool=ConnectionPool.from_url(url, connection_class=Interrupted))


@dataclass
class Once:
    """Does a thing the first time it is asked to."""

    act: Callable[[], object]
    called: bool = False

    def __call__(self) -> None:
        if not self.called:
            self.called = True
            self.act()


def mortal(url: str, round_trips: int) -> Redis:
    """A client that dies before its n-th round trip. To die after the answer is to die before the next."""

    def die() -> None:
        raise Killed

    return interrupted(url, round_trips, die)


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def lost(bench: Bench) -> str:
    job_id = bench.submit()
    bench.begin(job_id)
    return job_id


def lost_at_its_last_attempt(bench: Bench) -> str:
    job_id = bench.submit(attempts=1)
    bench.begin(job_id)
    return job_id


def lost_after_the_record(bench: Bench) -> str:
    job_id = lost_at_its_last_attempt(bench)
    bench.record(job_id)
    return job_id


def lost_and_canceled(bench: Bench) -> str:
    job_id = lost(bench)
    bench.ledger.request_cancel(job_id)
    return job_id


def popped(bench: Bench) -> str:
    job_id = bench.submit()
    bench.pop()
    return job_id


def claimed(bench: Bench) -> str:
    job_id = popped(bench)
    bench.claim(job_id)
    return job_id


def settled_but_held(bench: Bench) -> str:
    job_id = lost(bench)
    bench.ledger.settle(job_id, Outcome(JobStatus.SUCCEEDED))
    return job_id


def canceled_only_in_the_ledger(bench: Bench) -> str:
    job_id = bench.submit()
    bench.ledger.settle(job_id, Outcome(JobStatus.CANCELED))
    return job_id


def canceled_only_in_rq(bench: Bench) -> str:
    job_id = bench.submit()
    bench.rq_job(job_id).cancel()
    return job_id


def flagged_and_left_in_its_lane(bench: Bench) -> str:
    job_id = bench.submit()
    bench.ledger.request_cancel(job_id)
    return job_id


def queued_but_never_live(bench: Bench) -> str:
    job_id = bench.submit()
    bench.redis.zrem(bench.keys.live, job_id)
    return job_id


STATES: list[tuple[Callable[[Bench], str], JobStatus]] = [
    (lost, JobStatus.SUCCEEDED),
    (lost_at_its_last_attempt, JobStatus.FAILED),
    (lost_after_the_record, JobStatus.SUCCEEDED),
    (lost_and_canceled, JobStatus.CANCELED),
    (popped, JobStatus.SUCCEEDED),
    (claimed, JobStatus.SUCCEEDED),
    (settled_but_held, JobStatus.SUCCEEDED),
    (canceled_only_in_the_ledger, JobStatus.CANCELED),
    (canceled_only_in_rq, JobStatus.CANCELED),
    (flagged_and_left_in_its_lane, JobStatus.CANCELED),
    (queued_but_never_live, JobStatus.SUCCEEDED),
]


@pytest.mark.parametrize(("make", "outcome"), STATES, ids=[make.__name__ for make, _ in STATES])
def test_every_death_is_survived(
    bench: Bench, redis_url: str, make: Callable[[Bench], str], outcome: JobStatus
) -> None:
    for round_trips in count():
        job_id = make(bench)
        try:
            bench.rounds(mortal(redis_url, round_trips))()
        except Killed:
            survived = False
        else:
            survived = True
        for _ in range(2):
            bench.rounds()()
        if job_id in bench.waiting():
            bench.succeed(job_id, bench.begin(job_id, "the last attempt"))
        assert bench.entry(job_id).owner is None
        assert_over(bench, job_id, outcome)
        if survived:
            break
    assert round_trips > 20, "the death was never in the midst of it"


def test_a_replica_that_is_overtaken_does_nothing_twice(bench: Bench, redis_url: str) -> None:
    for round_trips in count():
        jobs = {make: make(bench) for make in (lost, popped, claimed)}
        other = Once(bench.rounds())
        bench.rounds(interrupted(redis_url, round_trips, other))()
        assert sorted(bench.waiting()) == sorted(jobs.values())
        for make, job_id in jobs.items():
            charged = 0 if make is popped else 1
            assert (charged_attempts(bench.entry(job_id)), bench.rq_job(job_id).retries_left) == (charged, 2 - charged)
        for job_id in bench.waiting():
            bench.succeed(job_id, bench.begin(job_id, "the last attempt"))
        if not other.called:
            break
    assert round_trips > 20, "nobody was ever overtaken"


def test_a_death_while_forgetting_a_submit_cut_short(bench: Bench, redis_url: str) -> None:
    for round_trips in range(60):
        bench.ledger.open("cut-short", TENANT, now())
        bench.redis.zincrby(bench.keys.live, -SUBMIT_GRACE_S - 1, "cut-short")
        with suppress(Killed):
            bench.rounds(mortal(redis_url, round_trips))()
        bench.rounds()()
        assert bench.redis.keys() == []
