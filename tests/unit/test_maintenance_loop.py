"""Maintenance deletes what is too old, and goes on by one replica at a time, whatever fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.job import Job as RqJob

from api.maintenance.lease import Lease
from api.maintenance.retention import Retention
from api.maintenance.rounds import Rounds, keep
from api.settings import MaintenanceSettings
from serinette.job import JobStatus, now
from serinette.ledger import Outcome
from serinette.names import Keys, record_key, upload_audio_key
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec, Task
from serinette.store import Store
from tests.unit.maintenance_bench import RETENTION_S, SPEC, TENANT, Bench


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def age(store_dir: Path, key: str, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(store_dir / key, (at, at))


def test_old_songs_and_uploads_go_unless_a_live_job_needs_them(bench: Bench, tmp_path: Path) -> None:
    old_song, young_song, live_song, source_song = "song-old", "song-young", bench.submit(), "song-source"
    uploads = ["up-old", "up-young", "up-used", "up-heard"]
    for job_id in (old_song, young_song, live_song, source_song):
        for name in ("a-0.mp3", "job.json"):
            bench.store.put(f"songs/{TENANT}/{job_id}/{name}", b"x")
            age(tmp_path / "store", f"songs/{TENANT}/{job_id}/{name}", 10 if job_id == young_song else RETENTION_S + 10)
    for upload in uploads:
        bench.store.put(upload_audio_key(TENANT, upload), b"x")
        age(tmp_path / "store", upload_audio_key(TENANT, upload), 10 if upload == "up-young" else RETENTION_S + 10)
    bench.submit(spec=SPEC.model_copy(update={"task": Task.COVER, "source_audio": "up-used"}))
    bench.submit(spec=GenerationSpec(task=Task.COVER, source_audio=f"{source_song}/0", reference_audio="up-heard"))

    assert Retention(bench.redis, bench.keys, bench.store, RETENTION_S).sweep(Event()) == 2
    left = {found.key.split("/")[2] for root in ("songs", "uploads") for found in bench.store.list(root)}
    assert left == {young_song, live_song, source_song, "up-young", "up-used", "up-heard"}


def test_a_sweep_goes_through_a_large_store_and_stops_when_told(bench: Bench, tmp_path: Path) -> None:
    for number in range(120):
        key = record_key(TENANT, f"song-{number}")
        bench.store.put(key, b"x")
        age(tmp_path / "store", key, RETENTION_S + 10)
    stop = Event()
    stop.set()
    retention = Retention(bench.redis, bench.keys, bench.store, RETENTION_S)
    assert retention.sweep(stop) == 1
    assert retention.sweep(Event()) == 119
    assert list(bench.store.list("songs")) == []


# -- the loop


def test_one_replica_holds_the_lease_until_it_falls_silent(redis: Redis, keys: Keys) -> None:
    one, other = (Lease(redis, keys.lease("rounds"), 2) for _ in range(2))
    assert one.hold() and one.hold()
    assert not other.hold()
    redis.pexpire(keys.lease("rounds"), 1)  # a silent holder, in a hurry
    time.sleep(0.05)
    assert other.hold()
    assert not one.hold()
    one.release()  # it is not one's to give
    assert other.hold()
    other.release()
    assert one.hold()


def kept(duty_makers: list[Callable[[], Callable[[], object]]], redis: Redis, keys: Keys, until: Event) -> None:
    stop = Event()
    threads = [
        Thread(target=keep, args=(make, Lease(redis, keys.lease("rounds"), 2), 0.01, stop)) for make in duty_makers
    ]
    for thread in threads:
        thread.start()
    try:
        assert until.wait(10)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_only_the_holder_of_the_lease_makes_rounds(redis: Redis, keys: Keys) -> None:
    rounds: list[str] = []
    enough = Event()

    def maker(name: str) -> Callable[[], Callable[[], object]]:
        def duty() -> None:
            rounds.append(name)
            if len(rounds) == 20:
                enough.set()

        return lambda: duty

    kept([maker("one"), maker("other")], redis, keys, enough)
    assert len(set(rounds)) == 1


def test_a_replica_without_the_lease_watches_and_need_not_begin_anew(bench: Bench) -> None:
    """Should the one at work die together with a worker, its successor has seen for how long nobody beat."""
    job_id = bench.submit()
    bench.begin(job_id)
    settings = MaintenanceSettings(heartbeat_s=0.5, heartbeat_ttl_s=2, retention_s=RETENTION_S)
    standby, stop = Rounds(bench.redis, bench.store, settings), Event()
    other = Lease(bench.redis, bench.keys.lease("rounds"), 30)
    assert other.hold()
    mine = Lease(bench.redis, bench.keys.lease("rounds"), 30)
    keeping = Thread(target=keep, args=(lambda: standby, mine, 0.1, stop, Rounds.watch))
    keeping.start()
    time.sleep(3)
    stop.set()
    keeping.join()
    assert bench.waiting() == []
    Rounds(bench.redis, bench.store, settings)()
    assert bench.waiting() == []
    standby()
    assert bench.waiting() == [job_id]


def test_after_an_outage_the_watch_begins_anew_and_is_told_once(
    redis: Redis, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[int] = []
    calls = 0
    enough = Event()

    def make() -> Callable[[], object]:
        made.append(calls)
        return duty

    def duty() -> None:
        nonlocal calls
        calls += 1
        if calls in {2, 3, 4}:
            raise RedisConnectionError("gone")
        if calls == 6:
            enough.set()

    with caplog.at_level("INFO"):
        kept([make], redis, keys, enough)
    assert made == [0, 2, 3, 4]
    told = [record.getMessage() for record in caplog.records]
    assert told == ["rounds fails: gone", "rounds goes on"]


def test_a_job_that_cannot_be_read_does_not_hold_up_the_others(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    broken, popped = bench.submit(), bench.submit()
    bench.pop()
    bench.pop()
    bench.redis.hset(RqJob.key_for(broken), "status", "no such status")
    settings = MaintenanceSettings(orphan_grace_s=0.01, retention_s=RETENTION_S)
    rounds = Rounds(bench.redis, bench.store, settings)

    def until(mended: Callable[[], object]) -> bool:
        for _ in range(200):
            rounds()
            if mended():
                return True
            time.sleep(0.02)
        return False

    assert until(bench.waiting)
    assert bench.waiting() == [popped]
    rounds()
    assert caplog.text.count(f"cannot reconcile job={broken}") == 1
    bench.ledger.settle(broken, Outcome(JobStatus.FAILED))  # as a slot that pops it does
    bench.redis.zadd(bench.keys.live, {broken: now().timestamp()})
    assert until(lambda: bench.live() == [popped])
    assert bench.redis.ttl(RqJob.key_for(broken)) > 0
