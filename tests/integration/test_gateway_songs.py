"""Songs, uploads and their bounds over real sockets: ranges, ETags, presigned URLs, 2 GB that are refused early."""

from __future__ import annotations

import hashlib
import io
import socket
import time
import uuid
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from redis import Redis

from serinette.settings import SharedSettings
from serinette.store import Store
from tests import servers
from tests.gateways import HandSlot, RunningGateway, gateway, problem

SONG = bytes(range(256)) * 8192  # 2 MiB: more than one chunk of the store
ETAG = f'"{hashlib.sha256(SONG).hexdigest()}"'
MAX_UPLOAD_BYTES = 3_000_000


@dataclass
class Studio:
    """A gateway, and a slot at the same Redis and store."""

    gateway: RunningGateway
    http: httpx.Client
    slot: HandSlot
    store: Store
    presigns: bool
    directory: Path

    def generate(self, *songs: bytes) -> str:
        job_id: str = self.http.post("/v1/jobs", json={"prompt": "x"}).json()["id"]
        self.slot.claim(job_id)
        self.slot.succeed(job_id, list(songs))
        return job_id


@pytest.fixture(scope="module", params=["directory", "s3"])
def studio(
    request: pytest.FixtureRequest, valkey_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Studio]:
    directory = tmp_path_factory.mktemp("studio")
    given: dict[str, str] = {"store_url": f"file://{directory}/store"}
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "directory":
            s3: servers.S3 = request.getfixturevalue("s3")
            for name, value in s3.environment.items():
                patch.setenv(name, value)
            given = {
                "store_url": f"s3://{servers.BUCKET}/{uuid.uuid4().hex}",
                "store_endpoint": s3.endpoint,
                "store_public_endpoint": s3.endpoint,
            }
        store = Store.open(SharedSettings.model_validate(given))
        with (
            gateway(
                directory,
                valkey_url,
                given["store_url"],
                **{name: value for name, value in given.items() if name != "store_url"},
                max_upload_bytes=MAX_UPLOAD_BYTES,
                max_upload_duration_s=10,
            ) as running,
            Redis.from_url(valkey_url) as redis,
            httpx.Client(base_url=running.url, timeout=30) as http,
        ):
            yield Studio(running, http, HandSlot(redis, store), store, request.param == "s3", directory)


def sound(duration_s: float) -> bytes:
    """A wav file of a falling ramp."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8_000)
        writer.writeframes(bytes(range(256)) * int(duration_s * 8_000 * 2 / 256))
    return file.getvalue()


def test_the_song_whole_and_in_parts(studio: Studio) -> None:
    path = f"/v1/jobs/{studio.generate(SONG, b'second')}/audio"
    whole = studio.http.get(path, params={"download": "true"})
    assert whole.status_code == 200
    assert whole.content == SONG
    assert whole.headers["etag"] == ETAG
    assert whole.headers["content-type"] == "audio/mpeg"
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["content-disposition"].startswith("attachment; filename=")
    assert studio.http.get(path, params={"index": 1, "download": "true"}).content == b"second"
    assert problem(studio.http.get(path, params={"index": 2}))["status"] == 404

    head = studio.http.head(path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(SONG)))
    fresh = studio.http.get(path, headers={"If-None-Match": f'W/{ETAG}, "x"'})
    assert (fresh.status_code, fresh.content, fresh.headers["etag"]) == (304, b"", ETAG)


def test_ranges(studio: Studio) -> None:
    path = f"/v1/jobs/{studio.generate(SONG)}/audio?download=true"
    size = len(SONG)
    for header, start, end in [
        ("bytes=0-0", 0, 1),
        ("bytes=1048570-1048580", 1_048_570, 1_048_581),  # over the edge of a chunk
        ("bytes=2000000-", 2_000_000, size),
        ("bytes=-5", size - 5, size),
    ]:
        part = studio.http.get(path, headers={"Range": header})
        assert part.status_code == 206
        assert part.content == SONG[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = studio.http.get(path, headers={"Range": f"bytes={size}-"})
    assert problem(beyond)["status"] == 416
    assert beyond.headers["content-range"] == f"bytes */{size}"
    for ignored in ({"Range": "bytes=9-1"}, {"Range": "x"}, {"Range": "bytes=0-1", "If-Range": '"other"'}):
        assert studio.http.get(path, headers=ignored).content == SONG
    same = studio.http.get(path, headers={"Range": "bytes=0-1", "If-Range": ETAG})
    assert (same.status_code, same.content) == (206, SONG[:2])


def test_a_redirect_where_the_store_can(studio: Studio) -> None:
    path = f"/v1/jobs/{studio.generate(SONG)}/audio"
    answer = studio.http.get(path)
    if not studio.presigns:
        assert answer.content == SONG
        return
    assert answer.status_code == 307
    song = httpx.get(answer.headers["location"])
    assert (song.status_code, song.content, song.headers["content-type"]) == (200, SONG, "audio/mpeg")


def test_a_song_whose_file_is_gone(studio: Studio) -> None:
    job_id = studio.generate(b"song")
    (stored,) = studio.store.list(f"songs/default/{job_id}/")
    studio.store.delete(stored.key)
    refusal = problem(studio.http.get(f"/v1/jobs/{job_id}/audio?download=true"))
    assert (refusal["status"], refusal["code"]) == (410, "gone")
    assert studio.http.head(f"/v1/jobs/{job_id}/audio").status_code == 410


@pytest.mark.parametrize("form", [False, True])
def test_an_upload_is_proved_and_kept(studio: Studio, form: bool) -> None:
    audio = sound(2)
    if form:
        answer = studio.http.post("/v1/uploads", files={"file": ("../../etc/passwd", audio, "application/x-evil")})
    else:
        answer = studio.http.post("/v1/uploads", content=audio, headers={"Content-Type": "application/x-evil"})
    assert answer.status_code == 201, answer.text
    upload = answer.json()
    assert upload["duration_s"] == pytest.approx(2, abs=0.1)
    assert (upload["sample_rate"], upload["channels"], upload["size_bytes"]) == (8_000, 1, len(audio))
    assert upload["sha256"] == hashlib.sha256(audio).hexdigest()
    assert studio.http.get(answer.headers["location"]).json() == upload
    assert studio.store.get(f"uploads/default/{upload['id']}/audio") == audio

    cover = {"task": "cover", "source_audio": upload["id"]}
    assert studio.http.post("/v1/jobs", json=cover).status_code == 202
    assert studio.http.delete(f"/v1/uploads/{upload['id']}").status_code == 204
    assert list(studio.store.list(f"uploads/default/{upload['id']}")) == []
    assert problem(studio.http.post("/v1/jobs", json=cover))["field"] == "source_audio"
    assert problem(studio.http.delete(f"/v1/uploads/{upload['id']}"))["status"] == 404


def kept(studio: Studio) -> set[str]:
    return {found.key for found in studio.store.list("uploads/default")}


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"this is not a song, whatever its name says\n" * 100, 422, "invalid_audio"),
        (b"", 422, "invalid_spec"),
        (b"ID3" + b"\x00" * 1000, 422, "invalid_audio"),
        (sound(11), 422, "invalid_audio"),
        (b"x" * (MAX_UPLOAD_BYTES + 1), 413, "too_large"),
    ],
)
def test_what_is_no_song_is_not_kept(studio: Studio, content: bytes, status: int, code: str) -> None:
    before = kept(studio)
    refusal = problem(studio.http.post("/v1/uploads", files={"file": ("song.mp3", content)}))
    assert (refusal["status"], refusal["code"], refusal["retryable"]) == (status, code, False)
    assert kept(studio) == before


def test_forms_without_a_file(studio: Studio) -> None:
    assert problem(studio.http.post("/v1/uploads", files={"other": ("a.wav", sound(1))}))["field"] == "file"
    headers = {"Content-Type": "multipart/form-data"}
    for content in (b"", b"--x\r\n", b"\x00" * 100):
        assert studio.http.post("/v1/uploads", content=content, headers=headers).status_code in {400, 422}
        bounded = {"Content-Type": "multipart/form-data; boundary=x"}
        assert studio.http.post("/v1/uploads", content=content, headers=bounded).status_code in {400, 422}
    many = [("file", (f"{n}.wav", b"x")) for n in range(50)]
    assert studio.http.post("/v1/uploads", files=many).status_code in {400, 422}


def test_presigned_uploads(studio: Studio) -> None:
    answer = studio.http.post("/v1/uploads", params={"presign": "true"})
    if not studio.presigns:
        assert (problem(answer)["status"], problem(answer)["code"]) == (501, "unsupported")
        return
    assert answer.status_code == 201
    slip = answer.json()
    path = f"/v1/uploads/{slip['id']}"
    assert problem(studio.http.post(f"{path}/complete"))["status"] == 404
    assert httpx.put(slip["put_url"], content=sound(1)).status_code == 200
    assert problem(studio.http.get(path))["status"] == 404
    assert problem(studio.http.post("/v1/jobs", json={"reference_audio": slip["id"]}))["field"] == "reference_audio"
    completed = studio.http.post(f"{path}/complete")
    assert completed.json()["sha256"] == hashlib.sha256(sound(1)).hexdigest()
    assert studio.http.post(f"{path}/complete").json() == completed.json()
    assert studio.http.post("/v1/jobs", json={"reference_audio": slip["id"]}).status_code == 202

    for content, code in ((b"text", "invalid_audio"), (b"x" * (MAX_UPLOAD_BYTES + 1), "too_large")):
        slip = studio.http.post("/v1/uploads", params={"presign": "true"}).json()
        httpx.put(slip["put_url"], content=content).raise_for_status()
        assert problem(studio.http.post(f"/v1/uploads/{slip['id']}/complete"))["code"] == code
        assert list(studio.store.list(f"uploads/default/{slip['id']}")) == []


@pytest.mark.parametrize("path", ["/v1/uploads", "/v1/jobs", "/generate_music_async", "/nothing"])
def test_two_gigabytes_are_refused_before_they_come(studio: Studio, path: str) -> None:
    with socket.create_connection(("127.0.0.1", studio.gateway.port), timeout=10) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2 * 2**30}\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")  # not one byte of the body was sent


@pytest.mark.parametrize("path", ["/v1/uploads", "/v1/jobs"])
def test_endless_chunks_are_refused_on_the_way(studio: Studio, path: str) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2 * 2**30 // 65_536):
            sent += 65_536
            yield b"x" * 65_536

    answer = studio.http.post(path, content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert sent < 50_000_000
    assert studio.http.get("/healthz").status_code == 200


def test_no_file_of_an_upload_stays_behind(studio: Studio) -> None:
    before = kept(studio)
    for path, kind in (
        ("/v1/uploads", "audio/wav"),
        ("/v1/uploads", "multipart/form-data; boundary=x"),
        ("/v1/jobs", ""),
    ):
        with socket.create_connection(("127.0.0.1", studio.gateway.port), timeout=10) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 1000000\r\n\r\n"
            connection.sendall(head.encode() + b"--x\r\n" + b"y" * 100_000)  # and breaks off
    assert studio.http.post("/v1/uploads", content=b"text").status_code == 422
    deadline = time.monotonic() + 20
    while left := list((studio.directory / "tmp").rglob("serinette-[ub]*")):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert kept(studio) == before
