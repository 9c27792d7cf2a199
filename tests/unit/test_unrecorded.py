"""Every end without a song reaches job.json, also one that Redis decided alone (decision 0012)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from redis import Redis

from controller.sweep_plan import Action
from controller.unrecorded import StoreCalls, UnrecordedEnds, record_end
from serinette.errors import StoreUnavailable
from serinette.job import JobError, JobStatus
from serinette.jobs import Outcome, calls
from serinette.jobs.finishing import finish_as, put_record, record_of
from serinette.jobs.script import text
from serinette.names import Keys, artifact_key, record_key, song_prefix
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.processes import eventually
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


class Overtaken(Store):
    """A store; something happens when the first record was put, and before anything is made of that."""

    def __init__(self, store: Store, meanwhile: Callable[[], object]) -> None:
        self.__dict__.update(store.__dict__)
        self._meanwhile: Callable[[], object] | None = meanwhile

    def put_if_absent(self, key: str, data: bytes) -> bool:
        done = super().put_if_absent(key, data)
        if meanwhile := self._meanwhile:
            self._meanwhile = None
            meanwhile()
        return done


def overtaken(bench: Bench, meanwhile: Callable[[], object]) -> None:
    store = Overtaken(bench.store, meanwhile)
    UnrecordedEnds(bench.board.jobs, bench.keys, StoreCalls(store))()


def erased(bench: Bench, job_id: str) -> None:
    """As the gateway does it."""
    assert bench.board.jobs(calls.erase(job_id, TENANT))
    bench.store.delete_prefix(song_prefix(TENANT, job_id))


def a_minute_passes(bench: Bench, job_id: str) -> None:
    """Since the job was erased."""
    at, _, tenant = text(bench.redis.get(bench.keys.erased_job(job_id))).partition(" ")
    bench.redis.set(bench.keys.erased_job(job_id), f"{float(at) - 61} {tenant}")
    assert job_id in unrecorded(bench), "it is to be looked at again"
    bench.redis.zincrby(bench.keys.unrecorded, -61, job_id)


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
    erased(bench, before)
    assert bench.sweep() == []

    meanwhile = canceled_retry(bench)
    overtaken(bench, lambda: bench.board.jobs(calls.erase(meanwhile, TENANT)))
    assert bench.sweep() == []
    assert list(bench.store.list("songs")) == []
    for job_id in (before, meanwhile):
        a_minute_passes(bench, job_id)
    bench.sweep()
    assert unrecorded(bench) == []


def test_a_record_that_comes_late_to_the_store_does_not_outlive_an_erasure(bench: Bench) -> None:
    """The store hangs for longer than a round waits; meanwhile the job is erased."""
    job_id = canceled_retry(bench)
    thawed, over = Event(), Event()

    class Frozen(Overtaken):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            thawed.wait(10)
            return super().put_if_absent(key, data)

    store_calls = StoreCalls(Frozen(bench.store, over.set), wait_s=0.05)
    assert UnrecordedEnds(bench.board.jobs, bench.keys, store_calls)() == 0
    erased(bench, job_id)
    thawed.set()
    assert over.wait(10)
    assert eventually(lambda: bench.sweep() == [] and stored(bench, job_id) == set())


def test_an_end_that_comes_late_to_the_store_ends_its_job_or_is_deleted_with_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, of a lost job's last attempt: its job ends otherwise, and is erased, while the store hangs."""
    monkeypatch.setattr("controller.sweeper.StoreCalls", partial(StoreCalls, wait_s=0.05))
    thawed = Event()

    class Frozen(Overtaken):
        def put_if_absent(self, key: str, data: bytes) -> bool:
            thawed.wait(10)
            return super().put_if_absent(key, data)

    gone, kept = bench.lost(attempts=1), bench.lost(attempts=1)
    over = Event()
    bench.store, store = Frozen(bench.store, over.set), bench.store
    assert bench.sweep() == []
    bench.store = store
    bench.board.cancel(gone)
    bench.board.jobs(calls.release(gone, bench.entry(gone).owner or "", None, charged=False))
    erased(bench, gone)
    thawed.set()
    assert over.wait(10)
    assert eventually(lambda: bench.entry(kept).status is JobStatus.FAILED)
    assert eventually(lambda: bench.sweep() == [] and stored(bench, gone) == set())
    bench.assert_over(kept, JobStatus.FAILED)


def test_what_a_killed_process_wrote_of_an_erased_job_goes_after_a_minute(bench: Bench) -> None:
    job_id = canceled_retry(bench)
    late = record_of(bench.entry(job_id), None, Outcome(JobStatus.CANCELED))
    erased(bench, job_id)
    bench.sweep()
    bench.store.put(record_key(TENANT, job_id), late.model_dump_json().encode())
    bench.sweep()
    assert stored(bench, job_id), "not before"
    a_minute_passes(bench, job_id)
    bench.sweep()
    assert (stored(bench, job_id), unrecorded(bench)) == (set(), [])


def test_a_frozen_slots_record_of_an_erased_job_is_deleted(bench: Bench) -> None:
    job_id = bench.lost()
    late = record_of(bench.entry(job_id), bench.entry(job_id).attempts[-1], Outcome(JobStatus.SUCCEEDED))
    assert bench.sweep() == [Action.RETRY]
    bench.board.cancel(job_id)
    erased(bench, job_id)
    finish_as(bench.board.jobs, put_record(bench.store, late))
    bench.sweep()
    assert stored(bench, job_id) == set()
    a_minute_passes(bench, job_id)
    bench.sweep()
    assert unrecorded(bench) == []


def test_a_job_that_was_submitted_again_replaces_what_is_left_of_the_erased_one(bench: Bench) -> None:
    job_id = bench.lost()
    late = record_of(bench.entry(job_id), bench.entry(job_id).attempts[-1], Outcome(JobStatus.SUCCEEDED))
    assert bench.sweep() == [Action.RETRY]
    bench.board.cancel(job_id)
    erased(bench, job_id)
    put_record(bench.store, late)
    bench.board.submit(job_id)
    bench.begin(job_id)
    bench.pass_leases()
    assert bench.sweep() == [Action.RETRY], "its own attempt was lost, and the song of the other is none of it"
    bench.board.cancel(job_id)
    assert bench.sweep() == [Action.RECORD]
    found, entry = bench.record(job_id), bench.entry(job_id)
    assert found and (found.status, found.created_at) == (JobStatus.CANCELED, entry.created_at)


def test_a_frozen_slot_replaces_no_record_of_the_job_that_has_its_id_now(bench: Bench) -> None:
    job_id = bench.lost(digest="d")
    frozen = bench.entry(job_id)
    assert bench.sweep() == [Action.RETRY]
    bench.board.cancel(job_id)
    erased(bench, job_id)
    bench.board.submit(job_id, digest="e")
    bench.begin(job_id)
    ours = bench.song(job_id)
    late = record_of(frozen, frozen.attempts[-1], Outcome(JobStatus.SUCCEEDED))
    assert put_record(bench.store, late, frozen) == ours == bench.record(job_id)


def test_of_two_attempts_that_replace_the_record_of_an_erased_job_the_first_wins(bench: Bench) -> None:
    job_id = bench.lost(digest="d")
    left = record_of(bench.entry(job_id), bench.entry(job_id).attempts[-1], Outcome(JobStatus.SUCCEEDED))
    assert bench.sweep() == [Action.RETRY]
    bench.board.cancel(job_id)
    erased(bench, job_id)
    put_record(bench.store, left)
    bench.board.submit(job_id, digest="e")
    frozen = bench.begin(job_id).entry
    bench.pass_leases()
    assert bench.sweep() == [Action.RETRY]
    begun = bench.begin(job_id).entry
    ours, late = (record_of(each, each.attempts[-1], Outcome(JobStatus.SUCCEEDED)) for each in (begun, frozen))

    class Slow(Store):
        def __init__(self) -> None:
            self.__dict__.update(bench.store.__dict__)

        def get(self, key: str) -> bytes:
            found = super().get(key)
            if found == left.model_dump_json().encode():
                assert put_record(bench.store, ours, begun) == ours
            return found

    assert put_record(Slow(), late, frozen) == ours == bench.record(job_id)


def test_ends_that_the_store_does_not_answer_hide_no_others(bench: Bench) -> None:
    *stuck, good = (bench.submit() for _ in range(3))

    class Poisoned(Store):
        def __init__(self) -> None:
            self.__dict__.update(bench.store.__dict__)

        def put_if_absent(self, key: str, data: bytes) -> bool:
            if any(job_id in key for job_id in stuck):
                raise StoreUnavailable("this key")
            return super().put_if_absent(key, data)

    for job_id in (*stuck, good):
        bench.board.cancel(job_id)
        bench.redis.zincrby(bench.keys.unrecorded, -5, job_id)
    round_ = UnrecordedEnds(bench.board.jobs, bench.keys, StoreCalls(Poisoned(), pause_s=0), most=2)
    assert [round_(), round_()] == [0, 1]
    assert sorted(unrecorded(bench)) == sorted(stuck)


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
