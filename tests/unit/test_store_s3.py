"""What only S3 does: sign, refuse and be out of reach."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serinette.errors import StoreUnavailable
from serinette.settings import SharedSettings
from serinette.store import Store
from tests import servers
from tests.unit.test_store import KEY, MIB, chunks, read, s3_settings


def test_a_directory_signs_nothing(tmp_path: Path) -> None:
    settings = SharedSettings(store_url=f"file://{tmp_path}", store_public_endpoint="https://songs.example")
    assert Store.open(settings).sign_get(KEY, 60) is None


def test_signed_urls_read_and_write(s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(s3_settings(s3, monkeypatch, tmp_path.name, store_public_endpoint=s3.endpoint))
    store.put(KEY, b"a song", "audio/mpeg")
    url = store.sign_get(KEY, 60)
    assert url
    answer = httpx.get(url)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"a song", "audio/mpeg")
    assert httpx.get(url, headers={"Range": "bytes=2-5"}).content == b"song"
    assert httpx.put(url, content=b"another").status_code == 403
    assert httpx.get(url.replace("attempt-1", "attempt-2")).status_code == 403

    upload = store.sign_put("uploads/default/u/audio", 60)
    assert upload
    assert httpx.put(upload, content=b"an upload").status_code == 200
    assert store.get("uploads/default/u/audio") == b"an upload"


def test_signed_urls_end(s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(s3_settings(s3, monkeypatch, tmp_path.name, store_public_endpoint=s3.endpoint))
    store.put(KEY, b"a song")
    url = store.sign_get(KEY, 1)
    assert url
    deadline = time.monotonic() + 20
    while (answer := httpx.get(url)).status_code == 200 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert answer.status_code == 403


def test_a_wrong_secret_reads_and_signs_nothing(
    s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = s3_settings(s3, monkeypatch, tmp_path.name, store_public_endpoint=s3.endpoint)
    Store.open(settings).put(KEY, b"a song")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    stranger = Store.open(settings)
    url = stranger.sign_get(KEY, 60)
    assert url
    assert httpx.get(url).status_code == 403
    with pytest.raises(StoreUnavailable, match="refuses our credentials"):
        stranger.get(KEY)
    with pytest.raises(StoreUnavailable):
        stranger.ping()


def test_a_bucket_that_is_not_there_is_no_missing_song(s3: servers.S3, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = s3_settings(s3, monkeypatch, "x").model_copy(update={"store_url": "s3://no-such-bucket/x"})
    with pytest.raises(StoreUnavailable):
        Store.open(settings).ping()


@pytest.fixture(params=["refuses", "says nothing"])
def dead_endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "says nothing":
            listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_dead_endpoint_is_unavailable_soon(
    dead_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    store = Store.open(SharedSettings(store_url="s3://songs/x", store_endpoint=dead_endpoint))
    calls: list[Callable[[], object]] = [
        store.ping,
        lambda: store.get(KEY),
        lambda: store.head(KEY),
        lambda: store.put(KEY, b"x"),
        lambda: store.put(KEY, bytes(6 * MIB)),
        lambda: store.put_if_absent(KEY, b"x"),
        lambda: store.delete(KEY),
        lambda: list(store.list("songs/")),
        lambda: store.download(KEY, tmp_path / "copy"),
        lambda: asyncio.run(read(store, KEY)),
        lambda: asyncio.run(store.put_stream(KEY, chunks(*[MIB] * 12), 20 * MIB)),
    ]

    def outcome(call: Callable[[], object]) -> tuple[object, float]:
        started = time.monotonic()
        try:
            return call(), 0
        except StoreUnavailable as error:
            return error.retryable, time.monotonic() - started

    with ThreadPoolExecutor(len(calls)) as pool:
        outcomes = list(pool.map(outcome, calls))
    assert [retryable for retryable, _ in outcomes] == [True] * len(calls)
    assert max(seconds for _, seconds in outcomes) < 25  # meant to be 10; the machine may be busy
