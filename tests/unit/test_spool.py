"""The store goes away: songs wait on disk, are sent later, and none is lost or generated twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from redis import Redis

from gpu_worker.settings import WorkerSettings
from gpu_worker.slot.retrying_store import RetryingStore
from gpu_worker.slot.spool import Parcel, Spool
from serinette.errors import StoreUnavailable
from serinette.job import JobStatus, Record
from serinette.names import Keys, record_key
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec
from serinette.store import Store
from tests.jobs import TENANT, charged_attempts
from tests.unit.slot_bench import Slot, SlotBench


class Pier(SlotBench):
    """A bench whose store can go away: a plain file lies where its directory was."""

    directory: Path

    @contextmanager
    def away(self) -> Iterator[None]:
        store, aside = self.directory / "store", self.directory / "store-aside"
        store.rename(aside)
        store.touch()
        try:
            yield
        finally:
            store.unlink()
            aside.rename(store)

    def spooling(self, max_bytes: int = 10**9, **given: Any) -> Slot:
        return self.slot(work_dir=self.directory / "work", spool_max_bytes=max_bytes, **given)

    @property
    def parcels(self) -> list[Path]:
        return sorted((self.directory / "work" / "spool").glob("*/*"))

    def job_json(self, job_id: str) -> Record:
        return Record.model_validate_json(self.store.get(record_key(TENANT, job_id)))


@pytest.fixture
def pier(redis: Redis, keys: Keys, tmp_path: Path) -> Pier:
    (tmp_path / "store").mkdir()
    made = Pier(redis, keys, Store.open(SharedSettings(store_url=f"file://{tmp_path / 'store'}")))
    made.directory = tmp_path
    return made


def winner_of(pier: Pier, job_id: str) -> str | None:
    attempt = pier.job_json(job_id).attempt
    return attempt.id if attempt else None


def send(slot: Slot) -> None:
    slot.spooled.send(at_once=True)


def die(slot: Slot) -> None:
    """What a kill leaves: no lock, no heartbeat, no word."""
    for held, parcel in slot.spooled.held:
        parcel.release()
        held.stop()
    slot.spooled.held.clear()


def test_a_slot_works_on_while_its_songs_wait_and_sends_them_when_the_store_is_back(pier: Pier) -> None:
    jobs = [pier.order() for _ in range(3)]
    slot = pier.spooling()
    with pier.away():
        for _ in jobs:
            slot.run_one()
        assert pier.engine.heard
        assert len(pier.parcels) == 3
        assert len(pier.held()) == 3, "the jobs are held, and their heartbeats go on"
        assert all(pier.entry(job_id).status is JobStatus.RUNNING for job_id in jobs)
        send(slot)
        assert len(pier.parcels) == 3
    send(slot)
    for job_id in jobs:
        entry = pier.entry(job_id)
        assert entry.status is JobStatus.SUCCEEDED
        assert len(entry.attempts) == 1
        artifact = pier.job_json(job_id).artifacts[0]
        assert pier.store.head(artifact.key).size_bytes == artifact.size_bytes
    assert pier.parcels == []
    assert pier.held() == []
    for job_id in jobs:
        pier.assert_ended(job_id, JobStatus.SUCCEEDED)


def test_only_what_the_store_did_not_take_is_spooled(pier: Pier, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = pier.order(GenerationSpec(prompt="jazz", seed=7, variations=2))
    slot = pier.spooling()
    leaving = pier.away()
    put = RetryingStore.put

    def second_time_without_a_store(store: RetryingStore, key: str, data: bytes, content_type: str) -> None:
        put(store, key, data, content_type)
        monkeypatch.undo()
        leaving.__enter__()

    monkeypatch.setattr(RetryingStore, "put", second_time_without_a_store)
    slot.run_one()
    assert sorted(file.name for parcel in pier.parcels for file in parcel.iterdir()) == ["1", "job.json"]
    leaving.__exit__(None, None, None)
    send(slot)
    assert len(list(pier.store.list("songs"))) == 3
    assert pier.entry(job_id).status is JobStatus.SUCCEEDED


def test_a_disk_that_takes_songs_and_no_record_loses_none(pier: Pier, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = pier.order()
    slot = pier.spooling()
    leaving = pier.away()
    leaving.__enter__()

    def no_room(*_: object) -> bool:
        leaving.__exit__(None, None, None)
        return False

    monkeypatch.setattr(Parcel, "seal", no_room)
    slot.run_one()
    pier.assert_ended(job_id, JobStatus.SUCCEEDED)
    artifact = pier.job_json(job_id).artifacts[0]
    assert pier.store.head(artifact.key).size_bytes == artifact.size_bytes
    assert pier.parcels == []


def test_a_full_spool_stops_claiming(pier: Pier) -> None:
    first, second = pier.order(), pier.order()
    slot = pier.spooling(max_bytes=1, drain_timeout_s=0)
    with pier.away():
        slot.run_one()
        assert slot.spooled.full
        Timer(0.2, pier.drain.on_signal, (15, None)).start()
        assert slot.dequeue_job_and_maintain_ttl(None) is None
        assert pier.entry(second).attempts == ()
    send(pier.spooling())
    assert pier.entry(first).status is JobStatus.SUCCEEDED
    assert not slot.spooled.full


def test_without_a_spool_a_song_waits_and_its_attempt_fails(pier: Pier) -> None:
    job_id = pier.order(attempts=1)
    slot = pier.slot()
    with pier.away():
        slot.run_one()
    error = pier.entry(job_id).error
    assert error and error.code == StoreUnavailable.code


def test_the_song_of_a_dead_slot_is_sent_by_the_next_one_of_its_pod(pier: Pier) -> None:
    job_id = pier.order()
    slot = pier.spooling()
    with pier.away():
        slot.run_one()
    die(slot)
    pier.lose(job_id)

    heir = pier.spooling()
    send(heir)
    assert pier.parcels == []
    record = pier.job_json(job_id)
    assert record.attempt and record.attempt.number == 1
    assert not heir.run_one(), "it was generated already"
    assert pier.entry(job_id).status is JobStatus.SUCCEEDED
    assert len(list(pier.store.list("songs"))) == 2


def test_a_parcel_that_is_held_is_left_alone(pier: Pier) -> None:
    pier.order()
    slot = pier.spooling()
    with pier.away():
        slot.run_one()
    send(pier.spooling())
    assert len(pier.parcels) == 1
    send(slot)
    assert pier.parcels == []


def test_half_a_parcel_is_erased(pier: Pier) -> None:
    slot = pier.spooling()
    spool = Spool.open(WorkerSettings(work_dir=pier.directory / "work"))
    assert spool
    parcel = spool.begin("attempt-x")
    assert parcel and parcel.add(0, b"half")
    parcel.release()
    send(slot)
    assert pier.parcels == []


def test_of_two_attempts_with_songs_the_first_record_counts(pier: Pier) -> None:
    job_id = pier.order()
    slot = pier.spooling()
    with pier.away():
        slot.run_one()
    die(slot)
    pier.lose(job_id)
    other = pier.slot(name="pod-2.0.slot")  # of another pod
    other.run_one()
    winner = pier.entry(job_id).attempts[-1].id
    assert winner_of(pier, job_id) == winner
    send(pier.spooling())
    assert pier.parcels == []
    assert winner_of(pier, job_id) == winner
    assert len(list(pier.store.list("songs"))) == 2, "the loser's song is not kept"


@pytest.mark.parametrize("dead", [False, True])
def test_a_canceled_job_brings_no_song(pier: Pier, dead: bool) -> None:
    job_id = pier.order()
    slot = pier.spooling()
    with pier.away():
        slot.run_one()
    pier.board.cancel(job_id)
    if dead:
        die(slot)
        slot = pier.spooling()
    else:
        slot.spooled.held[0][0].canceled = True  # as the heartbeat sees it
    send(slot)
    assert pier.parcels == []
    assert list(pier.store.list("songs")) == []
    assert dead or pier.entry(job_id).status is JobStatus.CANCELED


def test_a_slot_that_leaves_gives_its_jobs_back_and_keeps_their_songs(pier: Pier) -> None:
    job_id = pier.order()
    slot = pier.spooling(drain_timeout_s=0)
    with pier.away():
        slot.run_one()
        pier.drain.on_signal(15, None)
        assert slot.dequeue_job_and_maintain_ttl(None) is None
    assert pier.waiting() == [job_id]
    assert charged_attempts(pier.entry(job_id)) == 0
    assert not pier.drain.holding
    heir = pier.spooling()
    send(heir)
    assert not heir.run_one()
    assert pier.entry(job_id).status is JobStatus.SUCCEEDED


def test_songs_for_another_store_are_never_sent_to_this_one(tmp_path: Path) -> None:
    one = Spool.open(WorkerSettings(work_dir=tmp_path, store_url="s3://one/a"))
    other = Spool.open(WorkerSettings(work_dir=tmp_path, store_url="s3://other/a"))
    assert one and other
    assert one.directory != other.directory
    assert Spool.open(WorkerSettings(work_dir=tmp_path, spool_max_bytes=0)) is None


# -- Redis comes back empty, or without its last second


def test_a_song_whose_redis_came_back_empty_is_recorded_and_ends(pier: Pier) -> None:
    job_id = pier.order()
    slot = pier.spooling()

    def lost(_: object) -> None:
        pier.redis.flushdb()  # this test's own server

    pier.engine.meanwhile = lost
    slot.run_one()
    assert pier.job_json(job_id).job_id == job_id
    entry = pier.entry(job_id)
    assert entry.status is JobStatus.SUCCEEDED
    assert entry.tenant == TENANT
    pier.assert_ended(job_id, JobStatus.SUCCEEDED)


def test_a_failed_attempt_whose_redis_came_back_empty_is_tried_again(pier: Pier) -> None:
    job_id = pier.order()
    slot = pier.spooling()

    def lost(_: object) -> None:
        pier.redis.flushdb()
        raise OSError("no space left")

    pier.engine.meanwhile = lost
    slot.run_one()
    assert pier.waiting() == [job_id]
    pier.engine.meanwhile = lambda _: None
    slot.run_one()
    assert pier.entry(job_id).status is JobStatus.SUCCEEDED


def test_a_heartbeat_enters_again_what_redis_lost(pier: Pier) -> None:
    job_id = pier.order()
    slot = pier.spooling()
    slot.register_birth()  # type: ignore[no-untyped-call]  # RQ ships it untyped

    def lost(_: object) -> None:
        pier.redis.flushdb()
        assert slot.held
        assert slot.held.beat() == "mine"
        assert pier.entry(job_id).owner == slot.held.attempt.id
        assert pier.held() == [f"{job_id}:{slot.held.attempt.id}"]
        assert pier.redis.zrange(pier.keys.live, 0, -1) == [job_id.encode()]

    pier.engine.meanwhile = lost
    slot.run_one()
    assert pier.entry(job_id).status is JobStatus.SUCCEEDED


def test_a_claim_that_redis_forgot_still_brings_its_song(pier: Pier) -> None:
    """Valkey restored without its last second: the job waits in its lane, and is being generated."""
    job_id = pier.order()
    slot = pier.spooling()
    slot.register_birth()  # type: ignore[no-untyped-call]  # RQ ships it untyped
    before: dict[Any, Any] = {key: pier.redis.dump(key) for key in pier.redis.keys("*")}

    def restored(_: object) -> None:
        pier.redis.flushdb()
        for key, value in before.items():
            pier.redis.restore(key, 0, value)
        assert slot.held
        assert slot.held.beat() == "waits"

    pier.engine.meanwhile = restored
    slot.run_one()
    assert pier.waiting() == []
    assert not slot.run_one()
    assert pier.entry(job_id).status is JobStatus.SUCCEEDED
    assert len(list(pier.store.list("songs"))) == 2
