"""Maintenance killed, or overtaken, at every round trip: jobs in every broken state still end exactly once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from threading import Event

import pytest
from redis import Redis

from api.maintenance.plan import SUBMIT_GRACE_S
from api.maintenance.retention import Retention
from serinette.errors import NotFound
from serinette.job import JobStatus, now
from serinette.ledger import Outcome, Terms
from serinette.names import Keys, song_prefix
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.kills.deaths import Deaths, Fate, interrupted
from tests.kills.ends import recorded, today
from tests.pod import charged_attempts
from tests.unit.maintenance_bench import TENANT, Bench, a_result, assert_over

# Some lives are long, and each of their round trips is a death: minutes, on a busy machine.
pytestmark = pytest.mark.timeout(600)


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


def ended_and_unrecorded(bench: Bench) -> str:
    job_id = lost(bench)
    for execution in bench.rq_job(job_id).get_executions():
        bench.mend(job_id, execution)
    assert bench.pop() == job_id
    bench.ledger.settle(job_id, Outcome(JobStatus.CANCELED))
    return job_id


def never_begun_in_time(bench: Bench) -> str:
    job_id = bench.submit()
    bench.ledger.open(job_id, TENANT, now(), terms=Terms(start_by=now() - timedelta(seconds=1)))
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


SUCCEEDED, FAILED, CANCELED = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED
# Those that leave their job in the lane come last: whoever makes the others takes it out from the front.
STATES: dict[Callable[[Bench], str], JobStatus] = {
    lost: SUCCEEDED,
    lost_at_its_last_attempt: FAILED,
    lost_after_the_record: SUCCEEDED,
    lost_and_canceled: CANCELED,
    popped: SUCCEEDED,
    claimed: SUCCEEDED,
    settled_but_held: SUCCEEDED,
    ended_and_unrecorded: CANCELED,
    never_begun_in_time: FAILED,
    canceled_only_in_the_ledger: CANCELED,
    canceled_only_in_rq: CANCELED,
    flagged_and_left_in_its_lane: CANCELED,
    queued_but_never_live: SUCCEEDED,
}
# Of these an attempt might still be frozen, with a song in its hands.
BARRED = (lost_at_its_last_attempt, lost_and_canceled, ended_and_unrecorded)


def maintain(fate: Fate, redis_url: str, store_url: str) -> None:
    Bench(Redis.from_url(redis_url), Keys(), Store.open(SharedSettings(store_url=store_url))).rounds(
        fate.redis(redis_url)
    )()


def test_every_death_is_survived(bench: Bench, redis_url: str, file_store_url: str) -> None:
    """All states at once, so that it also dies between two jobs."""
    deaths = Deaths(fewest=60)
    for round_trips in deaths:
        jobs = {make: make(bench) for make in STATES}
        deaths.lives(round_trips, maintain, redis_url, file_store_url)
        for _ in range(2):
            bench.rounds()()
        for job_id in bench.waiting():
            bench.succeed(job_id, bench.begin(job_id, "the last attempt"))
        for make, job_id in jobs.items():
            assert bench.entry(job_id).owner is None, make
            assert_over(bench, job_id, STATES[make])
            record = recorded(bench, job_id)
            assert (record.status if record else None) in {STATES[make], None if make not in BARRED else STATES[make]}
        assert today(bench).jobs == len(jobs), "each is counted once"
        bench.redis.delete(*bench.redis.keys())


@dataclass
class Once:
    """Does a thing the first time that it is asked to, after so many times."""

    act: Callable[[], object]
    after: int
    called: bool = False

    def __call__(self) -> None:
        self.after -= 1
        if self.after < 0 and not self.called:
            self.called = True
            self.act()


def test_a_replica_that_is_overtaken_does_nothing_twice(bench: Bench, redis_url: str) -> None:
    for round_trips in range(1000):
        jobs = {make: make(bench) for make in (lost, popped, claimed)}
        other = Once(bench.rounds(), round_trips)
        bench.rounds(interrupted(redis_url, other))()
        assert sorted(bench.waiting()) == sorted(jobs.values())
        for make, job_id in jobs.items():
            charged = 0 if make is popped else 1
            assert (charged_attempts(bench.entry(job_id)), bench.rq_job(job_id).retries_left) == (charged, 2 - charged)
        for job_id in bench.waiting():
            bench.succeed(job_id, bench.begin(job_id, "the last attempt"))
        if not other.called:
            break
    assert round_trips > 20, "nobody was ever overtaken"


def test_a_death_while_forgetting_a_submit_cut_short(bench: Bench, redis_url: str, file_store_url: str) -> None:
    deaths = Deaths(fewest=10)
    for round_trips in deaths:
        bench.ledger.open("cut-short", TENANT, now())
        bench.redis.zincrby(bench.keys.live, -SUBMIT_GRACE_S - 1, "cut-short")
        deaths.lives(round_trips, maintain, redis_url, file_store_url)
        bench.rounds()()
        assert bench.redis.keys() == []


def sweep(fate: Fate, redis_url: str, store_url: str) -> None:
    redis, store = fate.redis(redis_url), Store.open(SharedSettings(store_url=store_url))
    Retention(redis, Keys(), store, 0).sweep(Event())


def test_a_death_while_expiring_songs(bench: Bench, redis_url: str, file_store_url: str) -> None:
    """A song goes whole: whatever is left of it still has its record, which the next sweep finds by."""
    deaths = Deaths(fewest=5)
    for round_trips in deaths:
        for job_id in ("one", "two"):
            bench.record(job_id)
            bench.store.put(a_result(job_id).artifacts[0].key, b"song")
        deaths.lives(round_trips, sweep, redis_url, file_store_url)
        for job_id in ("one", "two"):
            left = list(bench.store.list(song_prefix(TENANT, job_id).rstrip("/")))
            with suppress(NotFound):
                bench.store.get(a_result(job_id).artifacts[0].key)
                assert recorded(bench, job_id)
            assert not left or recorded(bench, job_id)
        Retention(bench.redis, bench.keys, bench.store, 0).sweep(Event())
        assert list(bench.store.list("songs")) == []
