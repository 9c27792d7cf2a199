"""The controller deletes what is too old; one replica leads at a time, whatever fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from controller.leader_election import LeaderElection, loop
from controller.retention import Retention
from controller.settings import ControllerSettings
from controller.sweeper import Sweeper
from serinette.names import Keys, record_key, upload_audio_key
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec, Task
from serinette.store import Store
from tests.processes import eventually
from tests.unit.controller_bench import RETENTION_S, SPEC, TENANT, Bench


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


def test_a_sweep_goes_through_a_large_store_and_stops_when_asked(bench: Bench, tmp_path: Path) -> None:
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


# -- leader election, and the loops of duties


def election(redis: Redis, keys: Keys) -> LeaderElection:
    return LeaderElection(redis, keys, 2)


def test_one_replica_holds_the_lease_until_it_falls_silent(redis: Redis, keys: Keys) -> None:
    one, other = election(redis, keys), election(redis, keys)
    assert one() and one() and one.leading
    assert not other() and not other.leading
    redis.pexpire(keys.leader, 1)  # a silent leader, in a hurry
    assert eventually(lambda: not redis.exists(keys.leader))
    assert other()
    assert not one() and not one.leading
    one.resign()  # it is not its own to give
    assert other()
    other.resign()
    assert not other.leading and one()


def test_a_leader_that_does_not_reach_redis_stops_leading(redis: Redis, keys: Keys) -> None:
    leader = LeaderElection(redis, keys, 0.2)
    assert leader()
    assert eventually(lambda: not leader.leading)


def looped(duty_makers: list[Callable[[], Callable[[], object]]], leaders: list[LeaderElection], until: Event) -> None:
    stop = Event()
    loops = [("rounds", make, 0.01, stop, leader) for make, leader in zip(duty_makers, leaders, strict=True)]
    threads = [Thread(target=loop, args=each) for each in loops]
    threads += [Thread(target=loop, args=("election", lambda each=each: each, 0.01, stop)) for each in leaders]
    for thread in threads:
        thread.start()
    try:
        assert until.wait(10)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_only_the_leader_makes_rounds(redis: Redis, keys: Keys) -> None:
    rounds: list[str] = []
    enough = Event()

    def maker(name: str) -> Callable[[], Callable[[], object]]:
        def duty() -> None:
            rounds.append(name)
            if len(rounds) == 20:
                enough.set()

        return lambda: duty

    looped([maker("one"), maker("other")], [election(redis, keys) for _ in range(2)], enough)
    assert len(set(rounds)) == 1


def test_the_sweeper_needs_no_lease(bench: Bench) -> None:
    """Should every other replica die together with a worker, no job waits for the leader's lease to run out."""
    assert LeaderElection(bench.redis, bench.keys, 30)(), "another replica's"
    job_id = bench.lost()
    settings, stop = ControllerSettings(retention_s=RETENTION_S), Event()
    sweeping = Thread(target=loop, args=("sweeper", lambda: Sweeper(bench.redis, bench.store, settings), 0.05, stop))
    sweeping.start()
    try:
        assert eventually(lambda: bench.board.waiting() == [job_id])
    finally:
        stop.set()
        sweeping.join()


def test_after_a_failure_the_duty_is_made_anew_and_reported_once(
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
        looped([make], [election(redis, keys)], enough)
    assert made == [0, 2, 3, 4]
    logged = [record.getMessage() for record in caplog.records]
    assert logged == ["rounds fails: gone", "rounds goes on"]
