"""Songs, uploads and batches that are older than they are kept for go; what is in use stays."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event

import pytest
from redis import Redis

from controller.retention import Retention, expired
from serinette.names import Keys, record_key, upload_audio_key
from serinette.settings import SharedSettings
from serinette.spec import GenerationSpec, Task
from serinette.store import Store, StoredObject
from tests.unit.controller_bench import RETENTION_S, SPEC, TENANT, Bench

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def stored(key: str, hours_old: float) -> StoredObject:
    return StoredObject(key, 1, None, NOON - timedelta(hours=hours_old))


def doomed(objects: list[StoredObject], in_use: set[str]) -> list[list[str]]:
    return [[found.key for found in group] for group in expired(objects, NOON, lambda: in_use)]


def test_a_song_goes_whole_and_its_record_last() -> None:
    old = [stored("songs/t/j1/job.json", 1), stored("songs/t/j1/a-0.mp3", 2), stored("songs/t/j1/b-0.mp3", 3)]
    young = [stored("songs/t/j2/a-0.mp3", 5), stored("songs/t/j2/job.json", -1)]
    assert doomed([*old, *young], set()) == [["songs/t/j1/a-0.mp3", "songs/t/j1/b-0.mp3", "songs/t/j1/job.json"]]


def test_what_an_unfinished_job_uses_is_kept() -> None:
    objects = [
        stored("songs/t/live/a-0.mp3", 9),
        stored("uploads/t/used/audio", 9),
        stored("uploads/t/unused/audio", 9),
    ]
    assert doomed(objects, {"live", "used"}) == [["uploads/t/unused/audio"]]


def test_what_is_in_use_is_not_looked_up_while_nothing_is_old() -> None:
    def unexpected() -> set[str]:
        raise AssertionError("asked for what is in use")

    assert list(expired([stored("songs/t/j/job.json", -1)], NOON, unexpected)) == []


@pytest.fixture
def bench(redis: Redis, keys: Keys, file_store_url: str) -> Bench:
    return Bench(redis, keys, Store.open(SharedSettings(store_url=file_store_url)))


def age(store_dir: Path, key: str, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(store_dir / key, (at, at))


def test_old_songs_and_uploads_go_unless_a_live_job_needs_them(bench: Bench, tmp_path: Path) -> None:
    old_song, young_song, live_song, source_song = "song-old", "song-young", bench.submit(), "song-source"
    uploads = ["up-old", "up-young", "up-used", "up-reference"]
    for job_id in (old_song, young_song, live_song, source_song):
        for name in ("a-0.mp3", "job.json"):
            bench.store.put(f"songs/{TENANT}/{job_id}/{name}", b"x")
            age(tmp_path / "store", f"songs/{TENANT}/{job_id}/{name}", 10 if job_id == young_song else RETENTION_S + 10)
    for upload in uploads:
        bench.store.put(upload_audio_key(TENANT, upload), b"x")
        age(tmp_path / "store", upload_audio_key(TENANT, upload), 10 if upload == "up-young" else RETENTION_S + 10)
    bench.submit(spec=SPEC.model_copy(update={"task": Task.COVER, "source_audio": "up-used"}))
    bench.submit(spec=GenerationSpec(task=Task.COVER, source_audio=f"{source_song}/0", reference_audio="up-reference"))

    assert Retention(bench.redis, bench.keys, bench.store, RETENTION_S).sweep(Event()) == 2
    left = {found.key.split("/")[2] for root in ("songs", "uploads") for found in bench.store.list(root)}
    assert left == {young_song, live_song, source_song, "up-young", "up-used", "up-reference"}


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
