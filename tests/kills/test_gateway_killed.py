"""A gateway killed before every round trip of a submit, a cancel, an erasure; with clients that ask again or do not."""

from __future__ import annotations

from contextlib import suppress

import pytest
from api.maintenance.plan import SUBMIT_GRACE_S
from redis import Redis
from serinette.ledger import Ledger

from api.queue import JobQueue, keyed_job_id
from api.settings import GatewaySettings
from serinette.errors import Conflict, EngineCrashed, NotFound
from serinette.job import JobOptions, JobStatus
from serinette.names import Keys
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.kills.deaths import Deaths, Fate
from tests.kills.ends import assert_counted_once, assert_ended_once, recorded, rescue
from tests.kills.test_slot_killed import attempt
from tests.unit.maintenance_bench import RETENTION_S, TENANT
from tests.unit.slot_bench import SlotBench

SPEC = GenerationSpec(prompt="jazz", seed=7)
SUCCEEDED, CANCELED = JobStatus.SUCCEEDED, JobStatus.CANCELED

pytestmark = pytest.mark.timeout(600)  # minutes, on a busy machine


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def gateway(redis: Redis, store_url: str) -> JobQueue:
    settings = GatewaySettings(store_url=store_url, retention_s=RETENTION_S)
    return JobQueue(redis, Store.open(settings), Ledger(redis, settings.keys, RETENTION_S), settings)


def submit(fate: Fate, redis_url: str, store_url: str, key: str) -> None:
    gateway(fate.redis(redis_url), store_url).submit(
        TENANT, SPEC, JobOptions(start_deadline_s=3600), idempotency_key=key
    )


def cancel(fate: Fate, redis_url: str, store_url: str, job_id: str) -> None:
    gateway(fate.redis(redis_url), store_url).cancel(TENANT, job_id)


def erase(fate: Fate, redis_url: str, store_url: str, job_id: str) -> None:
    gateway(fate.redis(redis_url), store_url).erase(TENANT, job_id)


def test_a_submit_that_is_repeated_is_one_job(
    bench: SlotBench, redis: Redis, redis_url: str, file_store_url: str
) -> None:
    deaths, jobs = Deaths(fewest=5), []
    for round_trips in deaths:
        key = f"key {round_trips}"
        deaths.lives(round_trips, submit, redis_url, file_store_url, key)
        job, _ = gateway(redis, file_store_url).submit(TENANT, SPEC, JobOptions(), idempotency_key=key)
        assert job.id == keyed_job_id(TENANT, key)
        assert bench.waiting() == [job.id]
        rescue(bench, job.id)
        assert assert_ended_once(bench, job.id) is SUCCEEDED
        jobs.append(job.id)
    assert_counted_once(bench, jobs)


def test_a_submit_that_nobody_repeats_is_a_job_or_nothing(
    bench: SlotBench, redis: Redis, redis_url: str, file_store_url: str
) -> None:
    deaths, jobs = Deaths(fewest=5), []
    for round_trips in deaths:
        job_id = keyed_job_id(TENANT, f"key {round_trips}")
        deaths.lives(round_trips, submit, redis_url, file_store_url, f"key {round_trips}")
        redis.zincrby(bench.keys.live, -SUBMIT_GRACE_S - 1, job_id) if job_id in bench.live() else None
        if bench.waiting():
            rescue(bench, job_id)
            assert assert_ended_once(bench, job_id) is SUCCEEDED
            jobs.append(job_id)
        else:
            bench.rounds()()
            bench.redis.delete(bench.keys.deadlines)  # its entries go when due
            assert not [found for found in redis.scan_iter() if job_id.encode() in found]
            assert job_id not in bench.live()
    assert jobs, "no death came behind the entry in RQ"
    assert_counted_once(bench, jobs)


@pytest.mark.parametrize("repeated", [True, False], ids=["repeated", "not repeated"])
@pytest.mark.parametrize("state", ["queued", "waits for its next attempt", "running"])
def test_every_death_of_a_cancel_is_survived(
    bench: SlotBench, redis: Redis, redis_url: str, file_store_url: str, state: str, repeated: bool
) -> None:
    deaths, jobs = Deaths(fewest=4), []
    for round_trips in deaths:
        job_id = bench.order()
        if state == "waits for its next attempt":
            attempt(bench, EngineCrashed("gone"))
        if state == "running":
            slot = bench.slot()
            bench.engine.meanwhile = lambda _: deaths.lives(round_trips, cancel, redis_url, file_store_url, job_id)  # noqa: B023  # called at once
            slot.sing_one()
        else:
            deaths.lives(round_trips, cancel, redis_url, file_store_url, job_id)
        if repeated:
            with suppress(Conflict):  # sung by now
                gateway(redis, file_store_url).cancel(TENANT, job_id)
        rescue(bench, job_id)
        bench.rounds()()
        outcome = assert_ended_once(bench, job_id)
        assert outcome is CANCELED or (outcome is SUCCEEDED and not bench.entry(job_id).cancel_requested)
        assert outcome is CANCELED or not repeated or state == "running"
        assert recorded(bench, job_id) or state != "waits for its next attempt"
        jobs.append(job_id)
    assert_counted_once(bench, jobs)


def test_an_erasure_that_is_repeated_leaves_nothing(
    bench: SlotBench, redis: Redis, redis_url: str, file_store_url: str
) -> None:
    deaths = Deaths(fewest=5)
    for round_trips in deaths:
        job_id = bench.order()
        bench.slot().sing_one()
        assert recorded(bench, job_id)
        deaths.lives(round_trips, erase, redis_url, file_store_url, job_id)
        with suppress(NotFound):
            gateway(redis, file_store_url).erase(TENANT, job_id)
        assert not [found for found in redis.scan_iter() if job_id.encode() in found]
        assert not list(bench.store.list("songs"))
