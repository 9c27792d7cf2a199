"""The store goes away: songs wait on disk, are sent later, and none is lost or generated twice."""

from __future__ import annotations

from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from redis import Redis

from gpu_worker.settings import WorkerSettings
from gpu_worker.slot.drain import RetryingStore
from gpu_worker.slot.spool import Parcel, Spool
from serinette.errors import StoreUnavailable
from serinette.job import JobStatus
from serinette.spec import GenerationSpec
from tests.jobs import TENANT, charged_attempts
from tests.unit.slot_bench import Slot, SpoolBench


@pytest.fixture
def bench(redis: Redis, tmp_path: Path) -> SpoolBench:
    return SpoolBench.at(redis, tmp_path)


def winner_of(bench: SpoolBench, job_id: str) -> str | None:
    attempt = bench.job_json(job_id).attempt
    return attempt.id if attempt else None


def die(slot: Slot) -> None:
    """What a kill leaves: no lock, no heartbeat, no word."""
    for held, parcel in slot.spooled.held:
        parcel.release()
        held.heartbeat.stop()
    slot.spooled.held.clear()


def test_a_slot_works_on_while_its_songs_wait_and_sends_them_when_the_store_is_back(bench: SpoolBench) -> None:
    jobs = [bench.order() for _ in range(3)]
    slot = bench.spooling()
    with bench.away():
        for _ in jobs:
            slot.run_one()
        assert bench.engine.requests
        assert len(bench.parcels) == 3
        assert len(bench.held()) == 3, "the jobs are held, and their heartbeats go on"
        assert all(bench.entry(job_id).status is JobStatus.RUNNING for job_id in jobs)
        slot.send_spooled()
        assert len(bench.parcels) == 3
    slot.send_spooled()
    for job_id in jobs:
        entry = bench.entry(job_id)
        assert entry.status is JobStatus.SUCCEEDED
        assert len(entry.attempts) == 1
        artifact = bench.job_json(job_id).artifacts[0]
        assert bench.store.head(artifact.key).size_bytes == artifact.size_bytes
    assert bench.parcels == []
    assert bench.held() == []
    for job_id in jobs:
        bench.assert_ended(job_id, JobStatus.SUCCEEDED)


def test_only_what_the_store_did_not_take_is_spooled(bench: SpoolBench, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bench.order(GenerationSpec(prompt="jazz", seed=7, variations=2))
    slot = bench.spooling()
    leaving = bench.away()
    put = RetryingStore.put

    def second_time_without_a_store(store: RetryingStore, key: str, data: bytes, content_type: str) -> None:
        put(store, key, data, content_type)
        monkeypatch.undo()
        leaving.__enter__()

    monkeypatch.setattr(RetryingStore, "put", second_time_without_a_store)
    slot.run_one()
    assert sorted(file.name for parcel in bench.parcels for file in parcel.iterdir()) == ["1", "job.json"]
    leaving.__exit__(None, None, None)
    slot.send_spooled()
    assert len(list(bench.store.list("songs"))) == 3
    assert bench.entry(job_id).status is JobStatus.SUCCEEDED


def test_a_disk_that_takes_songs_and_no_record_loses_none(bench: SpoolBench, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bench.order()
    slot = bench.spooling()
    leaving = bench.away()
    leaving.__enter__()

    def no_room(*_: object) -> bool:
        leaving.__exit__(None, None, None)
        return False

    monkeypatch.setattr(Parcel, "seal", no_room)
    slot.run_one()
    bench.assert_ended(job_id, JobStatus.SUCCEEDED)
    artifact = bench.job_json(job_id).artifacts[0]
    assert bench.store.head(artifact.key).size_bytes == artifact.size_bytes
    assert bench.parcels == []


def test_a_full_spool_stops_claiming(bench: SpoolBench) -> None:
    first, second = bench.order(), bench.order()
    slot = bench.spooling(max_bytes=1, drain_timeout_s=0)
    with bench.away():
        slot.run_one()
        assert slot.spooled.full
        Timer(0.2, bench.drain.on_signal, (15, None)).start()
        assert slot.dequeue_job_and_maintain_ttl(None) is None
        assert bench.entry(second).attempts == ()
    bench.spooling().send_spooled()
    assert bench.entry(first).status is JobStatus.SUCCEEDED
    assert not slot.spooled.full


def test_without_a_spool_a_song_waits_and_its_attempt_fails(bench: SpoolBench) -> None:
    job_id = bench.order(attempts=1)
    slot = bench.slot()
    with bench.away():
        slot.run_one()
    error = bench.entry(job_id).error
    assert error and error.code == StoreUnavailable.code


def test_the_song_of_a_dead_slot_is_sent_by_the_next_one_of_its_pod(bench: SpoolBench) -> None:
    job_id = bench.order()
    slot = bench.spooling()
    with bench.away():
        slot.run_one()
    die(slot)
    bench.lose(job_id)

    heir = bench.spooling()
    heir.send_spooled()
    assert bench.parcels == []
    record = bench.job_json(job_id)
    assert record.attempt and record.attempt.number == 1
    assert not heir.run_one(), "it was generated already"
    assert bench.entry(job_id).status is JobStatus.SUCCEEDED
    assert len(list(bench.store.list("songs"))) == 2


def test_a_parcel_that_is_held_is_left_alone(bench: SpoolBench) -> None:
    bench.order()
    slot = bench.spooling()
    with bench.away():
        slot.run_one()
    bench.spooling().send_spooled()
    assert len(bench.parcels) == 1
    slot.send_spooled()
    assert bench.parcels == []


def test_half_a_parcel_is_erased(bench: SpoolBench) -> None:
    slot = bench.spooling()
    spool = Spool.open(WorkerSettings(work_dir=bench.directory / "work"))
    assert spool
    parcel = spool.begin("attempt-x")
    assert parcel and parcel.add(0, b"half")
    parcel.release()
    slot.send_spooled()
    assert bench.parcels == []


def test_a_parcel_that_is_released_twice_closes_no_other_file(tmp_path: Path) -> None:
    parcel = Spool(tmp_path / "spool", 10**9).begin("attempt-x")
    assert parcel
    parcel.discard()
    with (tmp_path / "other").open("w") as other:  # it has the number that the lock had
        parcel.release()
        other.write("still open")
    assert (tmp_path / "other").read_text() == "still open"


def test_of_two_attempts_with_songs_the_first_record_counts(bench: SpoolBench) -> None:
    job_id = bench.order()
    slot = bench.spooling()
    with bench.away():
        slot.run_one()
    die(slot)
    bench.lose(job_id)
    other = bench.slot(name="pod-2.0.slot")  # of another pod
    other.run_one()
    winner = bench.entry(job_id).attempts[-1].id
    assert winner_of(bench, job_id) == winner
    bench.spooling().send_spooled()
    assert bench.parcels == []
    assert winner_of(bench, job_id) == winner
    assert len(list(bench.store.list("songs"))) == 2, "the loser's song is not kept"


@pytest.mark.parametrize("dead", [False, True])
def test_a_canceled_job_brings_no_song(bench: SpoolBench, dead: bool) -> None:
    job_id = bench.order()
    slot = bench.spooling()
    with bench.away():
        slot.run_one()
    bench.board.cancel(job_id)
    if dead:
        die(slot)
        slot = bench.spooling()
    else:
        slot.spooled.held[0][0].canceled = True  # as the heartbeat sees it
    slot.send_spooled()
    assert bench.parcels == []
    assert list(bench.store.list("songs")) == []
    assert dead or bench.entry(job_id).status is JobStatus.CANCELED


def test_a_slot_that_leaves_gives_its_jobs_back_and_keeps_their_songs(bench: SpoolBench) -> None:
    job_id = bench.order()
    slot = bench.spooling(drain_timeout_s=0)
    with bench.away():
        slot.run_one()
        bench.drain.on_signal(15, None)
        assert slot.dequeue_job_and_maintain_ttl(None) is None
    assert bench.waiting() == [job_id]
    assert charged_attempts(bench.entry(job_id)) == 0
    assert not bench.drain.holding
    heir = bench.spooling()
    heir.send_spooled()
    assert not heir.run_one()
    assert bench.entry(job_id).status is JobStatus.SUCCEEDED


def test_songs_for_another_store_are_never_sent_to_this_one(tmp_path: Path) -> None:
    one = Spool.open(WorkerSettings(work_dir=tmp_path, store_url="s3://one/a"))
    other = Spool.open(WorkerSettings(work_dir=tmp_path, store_url="s3://other/a"))
    assert one and other
    assert one.directory != other.directory
    assert Spool.open(WorkerSettings(work_dir=tmp_path, spool_max_bytes=0)) is None


# -- Redis comes back empty, or without its last second


def test_a_song_whose_redis_came_back_empty_is_recorded_and_ends(bench: SpoolBench) -> None:
    job_id = bench.order()
    slot = bench.spooling()

    def lost(_: object) -> None:
        bench.redis.flushdb()  # this test's own server

    bench.engine.meanwhile = lost
    slot.run_one()
    assert bench.job_json(job_id).job_id == job_id
    entry = bench.entry(job_id)
    assert entry.status is JobStatus.SUCCEEDED
    assert entry.tenant == TENANT
    bench.assert_ended(job_id, JobStatus.SUCCEEDED)


def test_a_failed_attempt_whose_redis_came_back_empty_is_tried_again(bench: SpoolBench) -> None:
    job_id = bench.order()
    slot = bench.spooling()

    def lost(_: object) -> None:
        bench.redis.flushdb()
        raise OSError("no space left")

    bench.engine.meanwhile = lost
    slot.run_one()
    assert bench.waiting() == [job_id]
    bench.engine.meanwhile = lambda _: None
    slot.run_one()
    assert bench.entry(job_id).status is JobStatus.SUCCEEDED


def test_a_heartbeat_enters_again_what_redis_lost(bench: SpoolBench) -> None:
    job_id = bench.order()
    slot = bench.spooling()
    slot.register_birth()  # type: ignore[no-untyped-call]  # RQ ships it untyped

    def lost(_: object) -> None:
        bench.redis.flushdb()
        assert slot.held
        assert slot.held.beat() == "mine"
        assert bench.entry(job_id).owner == slot.held.attempt.id
        assert bench.held() == [f"{job_id}:{slot.held.attempt.id}"]
        assert bench.redis.zrange(bench.keys.live, 0, -1) == [job_id.encode()]

    bench.engine.meanwhile = lost
    slot.run_one()
    assert bench.entry(job_id).status is JobStatus.SUCCEEDED


def test_a_claim_that_redis_forgot_still_brings_its_song(bench: SpoolBench) -> None:
    """Valkey restored without its last second: the job waits in its lane, and is being generated."""
    job_id = bench.order()
    slot = bench.spooling()
    slot.register_birth()  # type: ignore[no-untyped-call]  # RQ ships it untyped
    before: dict[Any, Any] = {key: bench.redis.dump(key) for key in bench.redis.keys("*")}

    def restored(_: object) -> None:
        bench.redis.flushdb()
        for key, value in before.items():
            bench.redis.restore(key, 0, value)
        assert slot.held
        assert slot.held.beat() == "waits"

    bench.engine.meanwhile = restored
    slot.run_one()
    assert bench.waiting() == []
    assert not slot.run_one()
    assert bench.entry(job_id).status is JobStatus.SUCCEEDED
    assert len(list(bench.store.list("songs"))) == 2
