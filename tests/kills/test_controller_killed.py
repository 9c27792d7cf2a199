"""The controller killed, or overtaken, at every round trip: jobs in every broken state still end exactly once."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event
from typing import Any

import pytest
from redis import Redis

from controller.retention import Retention
from controller.settings import ControllerSettings
from controller.sweeper import Sweeper
from serinette.job import JobStatus
from serinette.jobs import calls
from serinette.jobs.finishing import finish_as
from serinette.names import Keys, Lane, song_prefix
from serinette.pools import PoolFacts
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.jobs import charged_attempts
from tests.kills.deaths import Deaths, Fate, Once, interrupted
from tests.kills.ends import today
from tests.unit.controller_bench import RETENTION_S, TENANT, Bench

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
    job_id = lost(bench)
    bench.song(job_id)
    return job_id


def lost_and_canceled(bench: Bench) -> str:
    job_id = lost(bench)
    bench.board.cancel(job_id)
    return job_id


def given_up_and_canceled(bench: Bench) -> str:
    """Its attempt may only be frozen, while it holds a song."""
    job_id = given_up(bench)
    assert bench.board.cancel(job_id) == "canceled"
    return job_id


def given_up(bench: Bench) -> str:
    job_id = lost(bench)
    entry = bench.entry(job_id)
    bench.board.jobs(calls.release(job_id, entry.owner or "", entry.lost(last=False), charged=True))
    return job_id


def ended_over_a_song_that_came_later(bench: Bench) -> str:
    job_id = lost(bench)
    frozen = bench.entry(job_id)
    bench.board.jobs(calls.release(job_id, frozen.owner or "", frozen.lost(last=False), charged=True))
    bench.board.cancel(job_id)
    bench.song(job_id)
    return job_id


def ended_by_the_store_for_another_attempt(bench: Bench) -> str:
    """The attempt in charge never learns of it."""
    job_id = given_up(bench)
    record = bench.song(job_id)
    bench.begin(job_id)
    finish_as(bench.board.jobs, record)
    return job_id


def never_begun_in_time(bench: Bench) -> str:
    job_id = bench.submit(start_deadline_s=60)
    bench.redis.hset(bench.keys.job(job_id), "start_by", 1)
    bench.redis.zadd(bench.keys.deadlines, {job_id: 1})
    return job_id


def canceled_while_it_waited(bench: Bench) -> str:
    job_id = bench.submit()
    bench.board.cancel(job_id)
    return job_id


def taken_out_of_its_lane(bench: Bench) -> str:
    job_id = bench.submit()
    bench.redis.lrem("rq:queue:default.normal", 0, job_id)
    return job_id


def of_a_removed_pool(bench: Bench) -> str:
    return bench.submit(pool="old")


def stranded(bench: Bench) -> str:
    return bench.submit(pool="old", spec=GenerationSpec(prompt="jazz", model="old"))


SUCCEEDED, FAILED, CANCELED = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED
STATES: dict[Callable[[Bench], str], JobStatus] = {
    lost: SUCCEEDED,
    lost_at_its_last_attempt: FAILED,
    lost_after_the_record: SUCCEEDED,
    lost_and_canceled: CANCELED,
    given_up: SUCCEEDED,
    given_up_and_canceled: CANCELED,
    ended_over_a_song_that_came_later: CANCELED,
    ended_by_the_store_for_another_attempt: SUCCEEDED,
    never_begun_in_time: FAILED,
    canceled_while_it_waited: CANCELED,
    taken_out_of_its_lane: SUCCEEDED,
    of_a_removed_pool: SUCCEEDED,
    stranded: FAILED,
}


class Eager(Sweeper):
    """Out of patience with removed pools from its first round on."""

    def __init__(self, redis: Redis, store: Store, whole_s: float = 0) -> None:
        pools = (PoolFacts(name="default"),)
        settings = ControllerSettings(pools=pools, rehome_after_s=1e-9, retention_s=RETENTION_S)
        super().__init__(redis, store, settings, whole_s=whole_s)
        self._removed.lanes([("old", Lane.NORMAL)], (), 0)


def maintain(fate: Fate, redis_url: str, store_url: str) -> None:
    Eager(fate.redis(redis_url), Store.open(SharedSettings(store_url=store_url)))()


def succeed(bench: Bench, job_id: str) -> None:
    bench.begin(job_id, "pod-9.0.well")
    finish_as(bench.board.jobs, bench.song(job_id))


def sweep_all(bench: Bench, redis: Redis | None = None) -> None:
    bench.pass_leases()
    Eager(redis or bench.redis, bench.store)()


def test_every_death_is_survived(bench: Bench, redis_url: str, file_store_url: str) -> None:
    """All states at once, so that it also dies between two jobs."""
    deaths = Deaths(fewest=30)
    for round_trips in deaths:
        jobs = {make: make(bench) for make in STATES}
        bench.pass_leases()
        deaths.lives(round_trips, maintain, redis_url, file_store_url)
        sweep_all(bench)
        for job_id in bench.board.waiting():
            succeed(bench, job_id)
        assert today(bench.redis, bench.keys).jobs == len(jobs), "each is counted once"
        for make, job_id in jobs.items():
            record = bench.record(job_id)
            [seen] = bench.board.jobs(calls.look([job_id]))
            assert record and record.status is STATES[make], make
            if seen.entry:
                bench.assert_over(job_id, STATES[make])
            else:
                assert seen.shrunk and seen.shrunk.status is STATES[make], make
        sweep_all(bench)
        sweep_all(bench)
        assert all(seen.shrunk for seen in bench.board.jobs(calls.look(list(jobs.values()))))
        assert not bench.redis.exists(
            bench.keys.live, bench.keys.unrecorded, bench.keys.leases, bench.keys.deadlines, bench.keys.ended
        )
        assert not bench.redis.exists(bench.keys.busy("default"), bench.keys.in_flight(TENANT))
        bench.redis.flushdb()


def test_a_replica_that_is_overtaken_does_nothing_twice(bench: Bench, redis_url: str) -> None:
    for round_trips in range(1000):
        jobs = {make: make(bench) for make in (lost, given_up, taken_out_of_its_lane, lost_at_its_last_attempt)}
        bench.pass_leases()
        other = Once(Eager(bench.redis, bench.store, 600), round_trips)
        Eager(interrupted(redis_url, other), bench.store, 600)()
        failed = jobs.pop(lost_at_its_last_attempt)
        bench.assert_over(failed, FAILED)
        assert sorted(bench.board.waiting()) == sorted(jobs.values())
        for make, job_id in jobs.items():
            entry = bench.entry(job_id)
            assert charged_attempts(entry) == (0 if make is taken_out_of_its_lane else 1)
            assert entry.retries_left == 2 - charged_attempts(entry)
            assert bench.board.events(job_id).count("attempt") == charged_attempts(entry)
        listed: Any = bench.redis.lrange("rq:queue:default.normal", 0, -1)
        assert {each.decode() for each in listed} == set(jobs.values())
        bench.redis.flushdb()
        if not other.called:
            break
    assert round_trips > 10, "no replica was ever overtaken"


def sweep(fate: Fate, redis_url: str, store_url: str) -> None:
    redis, store = fate.redis(redis_url), Store.open(SharedSettings(store_url=store_url))
    Retention(redis, Keys(), store, 0).sweep(Event())


def test_a_death_while_expiring_songs(bench: Bench, redis_url: str, file_store_url: str) -> None:
    """A song goes whole: whatever is left of it still has its record, which the next sweep finds by."""
    deaths = Deaths(fewest=5)
    for round_trips in deaths:
        for job_id in ("one", "two"):
            bench.board.submit(job_id)
            bench.begin(job_id)
            record = bench.song(job_id)
            bench.store.put(record.keys[0], b"song")
        bench.redis.flushdb()
        deaths.lives(round_trips, sweep, redis_url, file_store_url)
        for job_id in ("one", "two"):
            left = list(bench.store.list(song_prefix(TENANT, job_id).rstrip("/")))
            assert not left or bench.record(job_id)
        Retention(bench.redis, bench.keys, bench.store, 0).sweep(Event())
        assert list(bench.store.list("songs")) == []
