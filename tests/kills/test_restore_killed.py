"""A restore from the store alone killed before every round trip, and begun again: each job is entered once."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from controller.restore import Restore
from serinette.job import Job, JobError, JobStatus
from serinette.jobs import Outcome, calls
from serinette.jobs.finishing import finish_as
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.kills.deaths import Deaths, Fate
from tests.kills.ends import today
from tests.unit.controller_bench import RETENTION_S, TENANT, Bench


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def restore(fate: Fate, redis_url: str, store_url: str) -> None:
    redis, store = fate.redis(redis_url), Store.open(SharedSettings(store_url=store_url))
    Restore(redis, store, Keys(), RETENTION_S)()


def known_of(job: Job) -> dict[str, Any]:
    """What a record keeps of a job. Its end is by the clock of who put it, and its wait is what the result says."""
    shown = job.model_dump(mode="json", exclude={"timeout_s", "cancel_requested", "ended_at"})
    for attempt in shown["attempts"]:
        del attempt["ended_at"]
    shown["usage"]["queue_s"] = 0
    return shown


def test_every_death_is_survived(bench: Bench, redis_url: str, file_store_url: str) -> None:
    succeeded, failed, canceled = bench.submit(labels={"album": "blue"}), bench.submit(), bench.submit()
    bench.begin(succeeded)
    finish_as(bench.board.jobs, bench.song(succeeded))
    failure = JobError(code="invalid_output", message="nan")
    bench.board.finish(bench.begin(failed), Outcome(JobStatus.FAILED, failure))
    bench.board.cancel(canceled)
    bench.sweep()
    before = {job_id: bench.entry(job_id).job() for job_id in (succeeded, failed, canceled)}
    deaths = Deaths(fewest=6)
    for round_trips in deaths:
        bench.redis.flushdb()
        deaths.lives(round_trips, restore, redis_url, file_store_url)
        again = Restore(bench.redis, bench.store, bench.keys, RETENTION_S)
        known = sum(seen.entry is not None for seen in bench.board.jobs(calls.look(list(before))))
        assert again() == len(before) - known
        assert again() == 0
        bench.sweep()
        for job_id, job in before.items():
            bench.assert_over(job_id, job.status)
            assert known_of(bench.entry(job_id).job()) == known_of(job)
        assert today(bench.redis, bench.keys).jobs == 0, "their day counted them when they ended"
        assert bench.redis.zcard(bench.keys.jobs(TENANT)) == len(before)
        assert not bench.redis.exists(bench.keys.webhooks, bench.keys.unrecorded, bench.keys.live)
        found: Any = bench.redis.keys("*job*")
        forever = {key.decode() for key in found if bench.redis.ttl(key) == -1}
        assert forever <= {bench.keys.jobs(TENANT)}
    bench.redis.zadd(bench.keys.ended, dict.fromkeys(before, 1))
    bench.sweep()
    assert all(seen.shrunk for seen in bench.board.jobs(calls.look(list(before))))


def test_what_is_about_to_be_deleted_stays_where_it_is(bench: Bench) -> None:
    job_id = bench.submit()
    bench.board.cancel(job_id)
    bench.sweep()
    bench.redis.flushdb()
    assert Restore(bench.redis, bench.store, bench.keys, 0)() == 0
    assert bench.redis.dbsize() == 0
