"""Every end without a song reaches job.json, also one that Redis decided alone (decision 0012)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from controller.sweep_plan import Action
from controller.unrecorded import Answer, StoreCalls, UnrecordedEnds, record_end
from serinette.job import JobError, JobStatus
from serinette.jobs import Outcome, calls
from serinette.jobs.finishing import finish_as
from serinette.names import Keys, artifact_key, record_key, song_prefix
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.controller_bench import TENANT, Bench

FAILURE = JobError(code="invalid_output", message="nan")


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def unrecorded(bench: Bench) -> list[str]:
    found: Any = bench.redis.zrange(bench.keys.unrecorded, 0, -1)
    return [job_id.decode() for job_id in found]


def stored(bench: Bench, job_id: str) -> set[str]:
    return {found.key for found in bench.store.list(song_prefix(TENANT, job_id))}


def canceled_retry(bench: Bench) -> str:
    """Its first attempt was given up; then its owner wanted it no more."""
    job_id = bench.lost()
    assert Action.RETRY in bench.sweep()
    assert bench.board.cancel(job_id) == "canceled"
    return job_id


def overtaken(bench: Bench, meanwhile: Callable[[], object]) -> None:
    """A round over the unrecorded ends; something happens between the store's answers and what is made of them."""

    class Overtaken(StoreCalls):
        def run(self, requests: Sequence[Callable[[Store], Answer]]) -> list[Answer | Exception]:
            answers = super().run(requests)
            if not done:
                done.append(meanwhile())
            return answers

    done: list[object] = []
    UnrecordedEnds(bench.board.jobs, bench.keys, Overtaken(bench.store))()
    assert done


def test_a_canceled_retry_is_recorded(bench: Bench) -> None:
    job_id = canceled_retry(bench)
    assert bench.record(job_id) is None
    assert bench.sweep() == [Action.RECORD]
    found, entry = bench.record(job_id), bench.entry(job_id)
    assert found and found.attempt
    assert (found.status, found.ended_at, found.attempt.id) == ("canceled", entry.ended_at, entry.attempts[-1].id)
    assert found.usage == entry.usage
    assert unrecorded(bench) == []


def test_a_job_that_no_worker_began_is_recorded(bench: Bench) -> None:
    job_id = bench.submit()
    bench.board.cancel(job_id)
    assert bench.sweep() == [Action.RECORD]
    found = bench.record(job_id)
    assert found and (found.status, found.attempt, found.started_at) == ("canceled", None, None)
    assert "recorded" in bench.entry(job_id).fields


def test_a_failure_while_the_store_is_away_is_recorded_when_it_is_back(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.submit()
    bench.board.finish(bench.begin(job_id), Outcome(JobStatus.FAILED, FAILURE))
    broken = tmp_path / "store" / "songs"
    broken.write_text("where a directory was: reading below it fails, even for root")
    assert bench.sweep() == []
    assert unrecorded(bench) == [job_id], "it waits for the store"
    broken.unlink()
    assert bench.sweep() == [Action.RECORD]
    found = bench.record(job_id)
    assert found and (found.status, found.error) == ("failed", FAILURE)
    assert unrecorded(bench) == []


def test_a_frozen_attempts_song_that_came_in_between_is_taken_back(bench: Bench) -> None:
    """Clients know the end; the store must not say otherwise for as long as it keeps the job."""
    job_id = bench.submit()
    bench.begin(job_id)
    frozen = bench.entry(job_id)
    bench.pass_leases()
    assert bench.sweep() == [Action.RETRY]
    bench.board.cancel(job_id)
    bench.store.put(artifact_key(TENANT, job_id, frozen.attempts[-1].id, 0, "mp3"), b"song")
    late = bench.song(job_id)
    bench.store.put(late.keys[0], b"song")
    assert finish_as(bench.board.jobs, late).status is JobStatus.CANCELED, "the slot learns how it ended"
    assert bench.sweep() == [Action.RECORD]
    found = bench.record(job_id)
    assert found and found.status is bench.entry(job_id).status is JobStatus.CANCELED
    assert stored(bench, job_id) == {record_key(TENANT, job_id)}


@pytest.mark.parametrize("crashes", [0, 1])
@pytest.mark.parametrize("succeeds", [True, False])
def test_songs_of_attempts_that_died_before_their_record_are_erased(bench: Bench, crashes: int, succeeds: bool) -> None:
    job_id = bench.submit()
    left = artifact_key(TENANT, job_id, "dead", 0, "wav")
    bench.store.put(left, b"song")
    for _ in range(crashes):
        bench.begin(job_id)
        bench.pass_leases()
        assert bench.sweep() == [Action.RETRY]
    claimed = bench.begin(job_id)
    if succeeds:
        record = bench.song(job_id)
        bench.store.put(record.keys[0], b"song")
        finish_as(bench.board.jobs, record)
        finish_as(bench.board.jobs, record)  # the answer was lost
    else:
        bench.board.finish(claimed, Outcome(JobStatus.FAILED, FAILURE))
    bench.sweep()
    found = bench.record(job_id)
    assert found and found.status is bench.entry(job_id).status
    kept = {record_key(TENANT, job_id), *found.keys}
    if (crashes, succeeds) == (0, True):  # no other attempt was known of: retention takes it
        kept |= {left}
    assert stored(bench, job_id) == kept
    assert unrecorded(bench) == []


def test_an_erased_job_is_not_recorded(bench: Bench) -> None:
    """Neither when it was erased before, nor when it is while its record is written."""
    before = canceled_retry(bench)
    assert bench.board.jobs(calls.erase(before, TENANT))
    assert unrecorded(bench) == []
    assert bench.sweep() == []

    meanwhile = canceled_retry(bench)
    overtaken(bench, lambda: bench.board.jobs(calls.erase(meanwhile, TENANT)))
    assert list(bench.store.list("songs")) == []
    assert unrecorded(bench) == []


def test_an_end_that_was_recorded_already_stays_as_it_is(bench: Bench) -> None:
    job_id = canceled_retry(bench)
    entry = bench.entry(job_id)
    assert StoreCalls(bench.store).run([partial(record_end, entry)] * 2) == [True, True]
    before = bench.store.get(record_key(TENANT, job_id))
    assert bench.sweep() == [Action.RECORD]
    assert bench.store.get(record_key(TENANT, job_id)) == before


def test_a_record_stays_though_another_replica_recorded_and_shrank_the_job_meanwhile(bench: Bench) -> None:
    job_id = canceled_retry(bench)

    def another_replica() -> None:
        assert bench.sweep() == [Action.RECORD]
        assert bench.board.jobs(calls.shrink(bench.entry(job_id)))

    overtaken(bench, another_replica)
    assert bench.record(job_id)
