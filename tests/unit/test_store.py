"""One suite for a directory and for S3: what either does, both do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serinette.errors import ConfigurationError, NotFound, RequestError, StoreUnavailable, TooLarge
from serinette.names import artifact_key, record_key, song_prefix
from serinette.settings import SharedSettings
from serinette.store import Store
from tests import servers

MIB = 1024 * 1024
KEY = artifact_key("default", "job-1", "attempt-1", 0, "mp3")


@pytest.fixture(params=["file", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedSettings:
    """Settings of an empty store of each kind."""
    if request.param == "file":
        return SharedSettings(store_url=f"file://{tmp_path}/a%20new/store")
    return s3_settings(request.getfixturevalue("s3"), monkeypatch, tmp_path.name)


@pytest.fixture
def store(settings: SharedSettings) -> Store:
    return Store.open(settings)


def s3_settings(s3: servers.S3, monkeypatch: pytest.MonkeyPatch, prefix: str, **more: Any) -> SharedSettings:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return SharedSettings(store_url=f"s3://{servers.BUCKET}/{prefix}", store_endpoint=s3.endpoint, **more)


async def chunks(*sizes: int, error: Exception | None = None) -> AsyncIterator[bytes]:
    for number, size in enumerate(sizes):
        yield bytes([number % 256]) * size
    if error:
        raise error


async def read(store: Store, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.stream(key, start, end)])


def test_an_object_comes_back_as_it_went_in(store: Store, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)
    store.put(KEY, data, "audio/mpeg")
    assert store.get(KEY) == data
    store.download(KEY, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    head = store.head(KEY)
    assert (head.key, head.size_bytes) == (KEY, len(data))
    assert head.etag
    assert abs(head.modified - datetime.now(UTC)) < timedelta(minutes=5)


def test_a_file_of_many_parts_and_an_empty_object(store: Store, tmp_path: Path) -> None:
    data = os.urandom(12 * MIB)
    (tmp_path / "song").write_bytes(data)
    store.put(KEY, tmp_path / "song")
    assert store.get(KEY) == data
    store.put(KEY, b"", "audio/mpeg")
    assert store.get(KEY) == b""
    assert store.head(KEY).size_bytes == 0
    assert asyncio.run(read(store, KEY)) == b""


def test_what_is_missing_is_not_found(store: Store, tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get(KEY),
        lambda: store.head(KEY),
        lambda: store.download(KEY, tmp_path / "copy"),
        lambda: asyncio.run(read(store, KEY)),
    ]
    for call in calls:
        with pytest.raises(NotFound, match="is not in the store"):
            call()
    assert not (tmp_path / "copy").exists()


def test_listing_and_erasing_stay_inside_the_prefix(store: Store) -> None:
    mine = {artifact_key("default", "job-1", "a", index, "mp3") for index in range(60)} | {
        record_key("default", "job-1")
    }
    theirs = {record_key("default", "job-10"), record_key("other", "job-1")}
    for key in mine | theirs:
        store.put(key, b"x")
    assert {found.key for found in store.list(song_prefix("default", "job-1"))} == mine
    assert {found.key for found in store.list("songs/")} == mine | theirs
    assert store.delete_prefix(song_prefix("default", "job-1")) == len(mine)
    assert {found.key for found in store.list("songs/")} == theirs
    assert store.delete_prefix(song_prefix("default", "job-1")) == 0
    assert list(store.list("uploads/")) == []


def test_erasing_twice_is_erasing(store: Store) -> None:
    store.put(KEY, b"x")
    store.delete(KEY)
    store.delete(KEY)
    with pytest.raises(NotFound):
        store.head(KEY)


def test_two_sweeps_at_once_erase_everything(store: Store) -> None:
    for index in range(120):
        store.put(artifact_key("default", "job-1", "a", index, "mp3"), b"x")
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(store.delete_prefix, [song_prefix("default", "job-1")] * 2))
    assert max(counts) > 0
    assert list(store.list("songs/")) == []


@pytest.mark.parametrize("round_number", range(5))
def test_of_sixteen_who_create_exactly_one_wins(settings: SharedSettings, round_number: int) -> None:
    key = record_key("default", f"job-{round_number}")
    stores = [Store.open(settings) for _ in range(16)]
    unsure = set()  # whose first call was not answered: it may have won all the same

    def create(number: int) -> bool:
        while True:
            try:
                return stores[number].put_if_absent(key, b"%d" % number)
            except StoreUnavailable:  # SeaweedFS lets racers wait a second each, now and then beyond our patience
                unsure.add(number)

    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(create, range(16)))
    stored = int(stores[0].get(key))
    winners = [number for number, won in enumerate(created) if won]
    assert winners == [stored] or (not winners and stored in unsure)
    assert not stores[0].put_if_absent(key, b"late")


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "songs/../../etc/passwd", "..", "songs//x", "songs/.hidden", "songs/x\n", "a\\b", "é", "%2e"],
)
def test_a_key_cannot_leave_the_store(store: Store, key: str, tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.put(key, b"x"),
        lambda: store.put_if_absent(key, b"x"),
        lambda: store.get(key),
        lambda: store.head(key),
        lambda: store.delete(key),
        lambda: store.delete_prefix(key),
        lambda: asyncio.run(read(store, key)),
        lambda: asyncio.run(store.put_stream(key, chunks(1), 10)),
    ]
    for call in calls:
        with pytest.raises(RequestError, match="is not a key"):
            call()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_a_stream_gives_any_span(store: Store) -> None:
    data = os.urandom(3 * MIB + 7)
    store.put(KEY, data)
    for start, end in [(0, None), (0, 1), (5, 10), (MIB, 2 * MIB + 1), (len(data) - 1, None), (0, 2 * len(data))]:
        assert await read(store, KEY, start, end) == data[start:end]
    sizes = [len(chunk) async for chunk in store.stream(KEY)]
    assert len(sizes) > 1
    assert max(sizes) <= 2 * MIB


async def test_a_stream_is_written_in_parts(store: Store) -> None:
    sizes = [MIB] * 11 + [0, 17]
    assert await store.put_stream(KEY, chunks(*sizes), 12 * MIB) == sum(sizes)
    assert store.get(KEY) == b"".join([chunk async for chunk in chunks(*sizes)])
    assert await store.put_stream(KEY, chunks(), 10) == 0
    assert store.get(KEY) == b""


async def test_a_stream_of_exactly_the_limit_passes(store: Store) -> None:
    assert await store.put_stream(KEY, chunks(10), 10) == 10
    with pytest.raises(TooLarge, match="10 bytes allowed"):
        await store.put_stream(KEY, chunks(10, 1), 10)


@pytest.mark.parametrize("error", [None, OSError("the client went away"), ValueError("nonsense")])
async def test_a_stream_cut_short_leaves_nothing(
    store: Store, settings: SharedSettings, request: pytest.FixtureRequest, error: Exception | None
) -> None:
    with pytest.raises(type(error) if error else TooLarge):
        await store.put_stream(KEY, chunks(*[MIB] * 12, error=error), (11 if error is None else 20) * MIB)
    assert leftovers(store, settings, request) == []


async def test_a_canceled_stream_leaves_nothing(
    store: Store, settings: SharedSettings, request: pytest.FixtureRequest
) -> None:
    arrived = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield bytes(MIB)
        arrived.set()
        await asyncio.sleep(3600)

    task = asyncio.create_task(store.put_stream(KEY, endless(), 20 * MIB))
    await asyncio.wait_for(arrived.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert leftovers(store, settings, request) == []


def leftovers(store: Store, settings: SharedSettings, request: pytest.FixtureRequest) -> list[str]:
    """Objects, staged files and unfinished multipart uploads."""
    found = [entry.key for entry in store.list("songs/")]
    if settings.store_url.startswith("file:"):
        directory = Path(settings.store_url.removeprefix("file://").replace("%20", " "))
        return found + [str(path) for path in directory.rglob("*") if path.is_file()]
    filer = request.getfixturevalue("s3").filer
    answer = httpx.get(f"{filer}/buckets/{servers.BUCKET}/.uploads/", headers={"Accept": "application/json"})
    return found + [entry["FullPath"] for entry in (answer.json() if answer.is_success else {}).get("Entries") or []]


def test_a_ping_of_a_store_that_answers(store: Store) -> None:
    store.ping()


def test_without_a_public_endpoint_nothing_is_signed(store: Store) -> None:
    assert store.sign_get(KEY, 60) is None
    assert store.sign_put(KEY, 60) is None


@pytest.mark.parametrize(
    "url", ["ftp://host/dir", "songs", "s3://", "file:///proc/no/such", "file:///a#b", "file:///a?b", "file://host/a"]
)
def test_a_store_that_cannot_be_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match="store_url"):
        Store.open(SharedSettings(store_url=url))


def test_a_directory_gone_read_only_is_unavailable(tmp_path: Path) -> None:
    store = Store.open(SharedSettings(store_url=f"file://{tmp_path}/store"))
    (tmp_path / "store" / "songs").write_text("a file where a directory must be")
    with pytest.raises(StoreUnavailable):
        store.put(KEY, b"x")


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60)


@given(_NAMES.filter(lambda name: name not in {".", ".."}))
@hypothesis.example('C#lab a%20b 100% what? x=y it\'s "so" 静か')
@hypothesis.example("é" * 80)
@hypothesis.settings(max_examples=60, deadline=None)
def test_a_directory_of_any_name_is_the_store(name: str) -> None:
    with TemporaryDirectory() as empty:
        directory = Path(empty) / name
        Store.open(SharedSettings(store_url=directory.as_uri())).put(KEY, b"x")
        assert [each.name for each in Path(empty).iterdir()] == [name]
        assert (directory / KEY).read_bytes() == b"x"
