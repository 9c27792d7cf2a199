"""A gateway killed before every round trip of a submit, a cancel, an erasure; with clients that ask again or do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import pytest
from redis import Redis
from redis import asyncio as redis_asyncio

from api.queue import JobQueue, keyed_job_id
from api.settings import GatewaySettings
from controller.settings import ControllerSettings
from controller.sweeper import Sweeper
from serinette.errors import Conflict, EngineCrashed, NotFound
from serinette.job import Job, JobOptions, JobStatus
from serinette.jobs import AsyncJobs
from serinette.names import Keys, song_prefix
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.jobs import TENANT, TTL_S
from tests.kills.deaths import Deaths, Fate
from tests.kills.ends import assert_counted_once, assert_ended_once, recorded, rescue
from tests.kills.test_slot_killed import attempt
from tests.unit.slot_bench import SlotBench

SPEC = GenerationSpec(prompt="jazz", seed=7)
SUCCEEDED, CANCELED = JobStatus.SUCCEEDED, JobStatus.CANCELED
Result = TypeVar("Result")

pytestmark = pytest.mark.timeout(600)  # minutes, on a busy machine


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> SlotBench:
    return SlotBench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def at_gateway(redis: redis_asyncio.Redis, store_url: str, act: Callable[[JobQueue], Awaitable[Result]]) -> Result:
    """What a gateway does, in an event loop of its own."""
    settings = GatewaySettings(store_url=store_url, retention_s=TTL_S)

    async def acting() -> Result:
        try:
            jobs = AsyncJobs(redis, settings.redis_prefix)
            return await act(JobQueue(jobs, Store.open(settings), settings))
        finally:
            await redis.aclose()

    return asyncio.run(acting())


def living(redis_url: str) -> redis_asyncio.Redis:
    return redis_asyncio.Redis.from_url(redis_url, decode_responses=True)


def submitting(key: str, **options: int) -> Callable[[JobQueue], Awaitable[tuple[Job, bool]]]:
    return lambda queue: queue.submit(TENANT, SPEC, JobOptions.model_validate(options), idempotency_key=key)


def submit(fate: Fate, redis_url: str, store_url: str, key: str) -> None:
    at_gateway(fate.redis_async(redis_url), store_url, submitting(key, start_deadline_s=3600))


def cancel(fate: Fate, redis_url: str, store_url: str, job_id: str) -> None:
    at_gateway(fate.redis_async(redis_url), store_url, lambda queue: queue.cancel(TENANT, job_id))


def erase(fate: Fate, redis_url: str, store_url: str, job_id: str) -> None:
    at_gateway(fate.redis_async(redis_url), store_url, lambda queue: queue.erase(TENANT, job_id))


def test_a_submit_that_is_repeated_is_one_job(bench: SlotBench, redis_url: str, file_store_url: str) -> None:
    deaths, jobs = Deaths(fewest=3), []
    for round_trips in deaths:
        key = f"key {round_trips}"
        deaths.lives(round_trips, submit, redis_url, file_store_url, key)
        job, _ = at_gateway(living(redis_url), file_store_url, submitting(key))
        assert job.id == keyed_job_id(TENANT, key)
        assert bench.waiting() == [job.id]
        rescue(bench, job.id)
        assert assert_ended_once(bench, job.id) is SUCCEEDED
        jobs.append(job.id)
    assert_counted_once(bench, jobs)


def test_a_submit_that_is_not_repeated_is_a_job_or_nothing(
    bench: SlotBench, redis: Redis, redis_url: str, file_store_url: str
) -> None:
    deaths, jobs = Deaths(fewest=3), []
    for round_trips in deaths:
        job_id = keyed_job_id(TENANT, f"key {round_trips}")
        deaths.lives(round_trips, submit, redis_url, file_store_url, f"key {round_trips}")
        if bench.waiting():
            rescue(bench, job_id)
            assert assert_ended_once(bench, job_id) is SUCCEEDED
            jobs.append(job_id)
        else:  # the submit is one step of the server: there is no half of a job to be found
            assert not [found for found in redis.scan_iter() if job_id.encode() in found]
            for index in (bench.keys.live, bench.keys.deadlines, bench.keys.in_flight(TENANT)):
                assert redis.zcard(index) == 0
    assert jobs, "no death came behind the submit"
    assert_counted_once(bench, jobs)


@pytest.mark.parametrize("repeated", [True, False], ids=["repeated", "not repeated"])
@pytest.mark.parametrize("state", ["queued", "waits for its next attempt", "running"])
def test_every_death_of_a_cancel_is_survived(
    bench: SlotBench, redis_url: str, file_store_url: str, state: str, repeated: bool
) -> None:
    deaths, jobs = Deaths(fewest=2), []
    for round_trips in deaths:
        job_id = bench.order()
        if state == "waits for its next attempt":
            attempt(bench, EngineCrashed("gone"))
        if state == "running":
            slot = bench.slot()
            bench.engine.meanwhile = lambda _: deaths.lives(round_trips, cancel, redis_url, file_store_url, job_id)  # noqa: B023  # called at once
            slot.run_one()
        else:
            deaths.lives(round_trips, cancel, redis_url, file_store_url, job_id)
        if repeated:
            with suppress(Conflict):  # it has its song by now
                at_gateway(living(redis_url), file_store_url, lambda queue: queue.cancel(TENANT, job_id))  # noqa: B023  # called at once
        rescue(bench, job_id)
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
        bench.slot().run_one()
        assert recorded(bench, job_id)
        deaths.lives(round_trips, erase, redis_url, file_store_url, job_id)
        with suppress(NotFound):
            at_gateway(living(redis_url), file_store_url, lambda queue: queue.erase(TENANT, job_id))  # noqa: B023  # called at once
        left = [found for found in redis.scan_iter() if job_id.encode() in found]
        assert left == [bench.keys.erased_job(job_id).encode()]
        assert not list(bench.store.list("songs"))


def test_an_erasure_that_is_not_repeated_leaves_the_job_or_nothing(
    bench: SlotBench, redis: Redis, redis_url: str, file_store_url: str
) -> None:
    sweeper = Sweeper(redis, bench.store, ControllerSettings())
    deaths, whole = Deaths(fewest=4), 0
    for round_trips in deaths:
        job_id = bench.order()
        bench.slot().run_one()
        deaths.lives(round_trips, erase, redis_url, file_store_url, job_id)
        sweeper()
        if redis.exists(bench.keys.job(job_id)):
            whole += 1
            record = recorded(bench, job_id)
            assert record and all(bench.store.get(key) for key in record.keys)
            at_gateway(living(redis_url), file_store_url, lambda queue: queue.erase(TENANT, job_id))  # noqa: B023  # called at once
        assert not list(bench.store.list(song_prefix(TENANT, job_id)))
    assert whole
