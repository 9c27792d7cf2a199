"""A job is erased, and another submitted with its id, before any one round trip of the sweeper or a frozen slot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from redis import Redis

from serinette.job import JobStatus
from serinette.jobs import AttemptState, Outcome, calls
from serinette.jobs.finishing import finish_as, put_record, record_of
from serinette.names import Keys, song_prefix
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.kills.deaths import Once, interrupted
from tests.unit.controller_bench import TENANT, Bench


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def waiting(bench: Bench) -> str:
    """Too long, for its start deadline."""
    job_id = bench.submit(start_deadline_s=60)
    bench.redis.hset(bench.keys.job(job_id), "start_by", "1")
    bench.redis.zadd(bench.keys.deadlines, {job_id: 1})
    return job_id


def begun(bench: Bench) -> str:
    """In time, so that its deadline does not count any more."""
    job_id = bench.submit(start_deadline_s=60)
    bench.begin(job_id)
    bench.redis.zadd(bench.keys.deadlines, {job_id: 1})
    return job_id


def lost(bench: Bench) -> str:
    """At its last attempt."""
    return bench.lost(attempts=1)


def canceled(bench: Bench) -> str:
    """And unrecorded."""
    job_id = bench.submit()
    bench.board.cancel(job_id)
    return job_id


def recorded(bench: Bench) -> str:
    """And about to shrink."""
    job_id = canceled(bench)
    bench.sweep()
    return job_id


def replaced(bench: Bench, *jobs: str) -> None:
    """Ended in whatever way, erased as a gateway does it, and submitted again."""
    for job_id in jobs:
        replace(bench, job_id)


def replace(bench: Bench, job_id: str) -> None:
    entry = bench.board.jobs(calls.look([job_id]))[0].entry
    if entry and not entry.status.ended:
        bench.board.cancel(job_id)
        if entry.owner:
            bench.board.jobs(calls.release(job_id, entry.owner, None, charged=False))
    assert bench.board.jobs(calls.erase(job_id, TENANT))
    bench.store.delete_prefix(song_prefix(TENANT, job_id))
    bench.board.submit(job_id, start_deadline_s=3600)


def test_what_the_sweeper_had_in_mind_for_an_erased_job_does_not_reach_the_other(bench: Bench, redis_url: str) -> None:
    places = 0
    while True:
        jobs = [state(bench) for state in (recorded, waiting, begun, lost, canceled)]
        change = Once(partial(replaced, bench, *jobs), places)
        with interrupted(redis_url, change) as client:
            bench.sweeper(client, whole_s=0)()
        if not change.called:
            break
        places += 1
        for _ in range(2):
            bench.sweep(whole_s=0)
        assert bench.board.waiting() == jobs
        for job_id in jobs:
            entry = bench.entry(job_id)
            assert (entry.status, entry.attempts, "recorded" in entry.fields) == (JobStatus.QUEUED, (), False)
            assert bench.redis.zscore(bench.keys.deadlines, job_id) is not None, "it has a deadline of its own"
            claimed = bench.begin(job_id)
            ours = record_of(claimed.entry, claimed.entry.attempts[-1], Outcome(JobStatus.SUCCEEDED))
            assert finish_as(bench.board.jobs, put_record(bench.store, ours, claimed.entry)).decided
        bench.sweep()
        for job_id in jobs:
            found = bench.record(job_id)
            assert found and found.created_at == bench.entry(job_id).created_at
        bench.redis.flushdb()
        bench.store.delete_prefix("songs")
    assert places >= 10


def test_a_frozen_slots_calls_reach_neither_the_erased_job_nor_the_other(bench: Bench) -> None:
    job_id = bench.submit()
    frozen = bench.begin(job_id)
    late = record_of(frozen.entry, frozen.entry.attempts[-1], Outcome(JobStatus.SUCCEEDED))
    attempt_id = frozen.entry.owner or ""
    given: list[Callable[[], Any]] = [
        lambda: bench.board.beat(frozen) is AttemptState.LOST,
        lambda: bench.board.jobs(calls.release(job_id, attempt_id, None, charged=True)) is AttemptState.LOST,
        lambda: finish_as(bench.board.jobs, late, by=attempt_id).erased,
    ]
    replaced(bench, job_id)
    for call in given:
        assert call()
        assert bench.entry(job_id).status is JobStatus.QUEUED
    second = bench.begin(job_id, "pod-2.0.def")
    for call in given:
        assert call()
        assert bench.entry(job_id).owner == second.entry.owner
