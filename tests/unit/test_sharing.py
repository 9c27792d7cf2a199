"""What one tenant does holds up no other: shares of what is bounded; and what a full machine answers."""

from __future__ import annotations

import asyncio
import errno
import shutil
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis

from api import __main__ as program
from api import bodies, downloads, events, uploads
from api.app import create_app
from api.queue.pool_status import MAX_AGE_S
from serinette.credentials import Limits
from serinette.media import AudioInfo
from serinette.store import Store
from tests.gateways import HandSlot, problem
from tests.servers import small_tmpfs
from tests.unit.sounds import wav
from tests.unit.tenants import SONG, bearing, key_of, serving, settings_of

pytestmark = pytest.mark.shared_valkey

MIB = 2**20
Served = tuple[FastAPI, httpx.AsyncClient]


@pytest.fixture
async def served(redis_url: str, file_store_url: str) -> AsyncIterator[Served]:
    async with serving(settings_of(redis_url, file_store_url)) as both:
        yield both


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # no event says so
            await asyncio.sleep(0.01)


async def test_one_tenants_proofs_leave_room_for_anothers_upload(
    served: Served, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, http = served
    goes_on, proving = threading.Event(), []

    def prove(path: Path, **_: object) -> AudioInfo:
        if path.stat().st_size > 1:
            proving.append(path)
            assert goes_on.wait(60)
        return AudioInfo(duration_s=1, sample_rate=48_000, channels=2, codec="flac", container="flac")

    monkeypatch.setattr(uploads, "prove_audio", prove)
    greedy, other = key_of(redis, "greedy"), key_of(redis, "other")
    many = [
        asyncio.create_task(http.post("/v1/uploads", content=b"xx", headers=bearing(greedy), timeout=60))
        for _ in range(bodies.BODIES_OF_TENANT + 4)
    ]
    await until(lambda: sum(request.done() for request in many) == 4 and proving)
    try:
        refused = [request.result() for request in many if request.done()]
        assert {(answer.status_code, problem(answer)["code"]) for answer in refused} == {(429, "limited")}
        assert all(answer.headers["Retry-After"] for answer in refused)
        answer = await asyncio.wait_for(http.post("/v1/uploads", content=b"x", headers=bearing(other)), 30)
        assert answer.status_code == 201, "in the place that one tenant cannot take"
        assert len(proving) == 2
    finally:
        goes_on.set()
    answers = [answer.status_code for answer in await asyncio.gather(*many)]
    assert answers.count(201) == bodies.BODIES_OF_TENANT


async def test_event_streams_of_one_job_share_one_read_and_are_bounded_per_tenant(
    served: Served, redis: Redis, file_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, http = served
    key, other = key_of(redis, "acme"), key_of(redis, "other")
    bound = events.STREAMS_OF_TENANT
    job_id = (await http.post("/v1/jobs", json=SONG, headers=bearing(key))).json()["id"]
    path = f"/v1/jobs/{job_id}/events"
    reads = []
    read = events.JobEvents._read

    async def counted(self: events.JobEvents, *given: str) -> Any:
        reads.append(given)
        return await read(self, *given)

    monkeypatch.setattr(events.JobEvents, "_read", counted)
    streams = [asyncio.create_task(http.get(path, headers=bearing(key), timeout=120)) for _ in range(bound + 5)]
    await until(lambda: sum(stream.done() for stream in streams) == 5)
    assert {(one.result().status_code, problem(one.result())["code"]) for one in streams if one.done()} == {
        (429, "limited")
    }
    own = (await http.post("/v1/jobs", json=SONG, headers=bearing(other))).json()["id"]
    others = asyncio.create_task(http.get(f"/v1/jobs/{own}/events", headers=bearing(other), timeout=120))
    await until(lambda: app.state.parts.events.streams.held("other") == 1)
    slot = HandSlot(redis, Store.open(settings_of("redis://x", file_store_url)))
    assert slot.claim(job_id)
    for step in range(1, 9):
        slot.step(job_id, step)
    slot.succeed(job_id, [b"song"], tenant="acme")
    (await http.post(f"/v1/jobs/{own}/cancel", headers=bearing(other))).raise_for_status()
    texts = [answer.text for answer in await asyncio.gather(*streams) if answer.status_code == 200]
    assert len(texts) == bound
    assert {text.count("event: progress") for text in texts} == {8}
    assert all("event: succeeded" in text for text in texts)
    assert "event: canceled" in (await others).text
    assert len(reads) < 20, "not one for each stream and step"
    assert app.state.parts.events.streams.held("acme") == 0


async def test_downloads_of_one_tenant_leave_room_for_anothers(
    served: Served, redis: Redis, file_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, http = served
    slot = HandSlot(redis, Store.open(settings_of("redis://x", file_store_url)))
    keys, paths = {name: bearing(key_of(redis, name)) for name in ("greedy", "other")}, {}
    for name, headers in keys.items():
        job_id = (await http.post("/v1/jobs", json=SONG, headers=headers)).json()["id"]
        slot.claim(job_id)
        slot.succeed(job_id, [b"song"], tenant=name)
        paths[name] = f"/v1/jobs/{job_id}/audio"
    goes_on, sending = asyncio.Event(), []
    stream = Store.stream

    async def slowly(self: Store, key: str, *span: int) -> AsyncIterator[bytes]:
        sending.append(key)
        async for chunk in stream(self, key, *span):
            if "greedy" in key:
                await goes_on.wait()
            yield chunk

    monkeypatch.setattr(Store, "stream", slowly)
    bound, waiting = downloads.DOWNLOADS_OF_TENANT, 64
    many = [
        asyncio.create_task(http.get(paths["greedy"], headers=keys["greedy"], timeout=60))
        for _ in range(bound + waiting + 5)
    ]
    await until(lambda: sum(request.done() for request in many) == 5)
    refused = [request.result() for request in many if request.done()]
    assert {(answer.status_code, problem(answer)["code"]) for answer in refused} == {(429, "limited")}
    assert len(sending) == app.state.parts.downloads.sending.held("greedy") == bound
    assert (await http.get(paths["other"], headers=keys["other"])).content == b"song"
    goes_on.set()
    answers = [answer.status_code for answer in await asyncio.gather(*many)]
    assert answers.count(200) == bound + waiting
    assert (await http.head(paths["greedy"], headers=keys["greedy"])).status_code == 200
    assert app.state.parts.downloads.sending.held("greedy") == 0


async def test_waits_are_bounded_per_tenant(served: Served, redis: Redis) -> None:
    app, http = served
    waits = app.state.parts.events.waits
    key, other = bearing(key_of(redis, "acme")), bearing(key_of(redis, "other"))
    job_id, own = [(await http.post("/v1/jobs", json=SONG, headers=each)).json()["id"] for each in (key, other)]
    wait = {"Prefer": "wait=50"}
    held = [
        asyncio.create_task(http.get(f"/v1/jobs/{job_id}", headers={**key, **wait}, timeout=120))
        for _ in range(events.WAITS_OF_TENANT)
    ]
    await until(lambda: waits.held("acme") == events.WAITS_OF_TENANT)
    for answer in (
        await http.get(f"/v1/jobs/{job_id}", headers={**key, **wait}),
        await http.post("/v1/jobs", json=SONG, headers={**key, **wait}),
    ):
        assert answer.is_success
        assert answer.json()["status"] == "queued"
        assert "Preference-Applied" not in answer.headers
    for path in (f"/result/{job_id}?wait=50", f"/v1/chat/completions/{job_id}?wait=50"):
        refused = await http.get(path, headers=key)
        assert (refused.status_code, "Retry-After" in refused.headers) == (429, True), refused.text
    assert (await http.post("/generate_music", json={}, headers=key)).status_code == 303, "it was submitted"
    theirs = asyncio.create_task(http.get(f"/v1/jobs/{own}", headers={**other, **wait}, timeout=120))
    await until(lambda: waits.held("other") == 1)
    for mine, by in ((job_id, key), (own, other)):
        (await http.post(f"/v1/jobs/{mine}/cancel", headers=by)).raise_for_status()
    assert {answer.json()["status"] for answer in await asyncio.gather(theirs, *held)} == {"canceled"}
    assert (waits.held("acme"), waits.held("other")) == (0, 0)


def form(fields: int, field_bytes: int, file: bool) -> tuple[bytes, str]:
    """A form of so many text fields, and its media type."""
    boundary = uuid.uuid4().hex
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="f{n}"\r\n\r\n'.encode() for n in range(fields)]
    body = b"".join(part + b"x" * field_bytes + b"\r\n" for part in parts)
    if file:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        body += head.encode() + wav(bytes(48_000)) + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@pytest.mark.parametrize("path", ["/release_task", "/generate_music_with_audio", "/v1/uploads"])
async def test_a_forms_fields_are_bounded_together(served: Served, redis: Redis, path: str) -> None:
    _, http = served
    headers = bearing(key_of(redis, "acme"))
    body, kind = form(6, MIB // 4, file=False)
    answer = await http.post(path, content=body, headers={**headers, "Content-Type": kind})
    assert (answer.status_code, "together" in answer.text) == (413, True)
    body, kind = form(6, 100, file=True)
    answer = await http.post("/v1/uploads", content=body, headers={**headers, "Content-Type": kind})
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("path", ["/generate_music_with_audio", "/release_task", "/v1/uploads"])
async def test_a_forms_files_lie_on_the_disk_and_are_few(
    served: Served, redis: Redis, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, http = served
    made: list[int] = []
    kind = tempfile.SpooledTemporaryFile

    def counted(*, max_size: int) -> Any:
        made.append(max_size)
        return kind(max_size=max_size)

    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", counted)
    part = b'--x\r\nContent-Disposition: form-data; name="f%d"; filename="a"\r\n\r\n' + bytes(2_000) + b"\r\n"
    body = b"".join(part % number for number in range(40)) + b"--x--\r\n"
    headers = {**bearing(key_of(redis, "acme")), "Content-Type": "multipart/form-data; boundary=x"}
    answer = await http.post(path, content=body, headers=headers)
    assert (answer.status_code, "Too many files" in answer.text) == (400, True), answer.text
    assert 1 <= len(made) <= 2
    assert max(made) <= 65_536, "of each so much is in memory"


async def test_a_form_without_files_is_no_longer_than_a_body_may_be(served: Served, redis: Redis) -> None:
    _, http = served
    headers = {**bearing(key_of(redis, "acme")), "Content-Type": "application/x-www-form-urlencoded"}
    for path in ("/release_task", "/generate_music_with_audio"):
        answer = await http.post(path, content=b"prompt=" + b"x" * 2 * MIB, headers=headers)
        assert answer.status_code == 413, path


async def test_a_full_queue_says_so_and_what_it_holds_can_be_read(served: Served, redis: Redis) -> None:
    _, http = served
    headers = bearing(key_of(redis, "acme", Limits(requests_per_minute=1_000)))
    job = (await http.post("/v1/jobs", json=SONG, headers=headers)).json()
    assert (await http.get("/readyz")).status_code == 200
    redis.config_set("maxmemory", 1)
    try:
        for answer in (await http.post("/v1/jobs", json=SONG, headers=headers), await http.get("/readyz")):
            assert (answer.status_code, problem(answer)["code"]) == (503, "queue_full"), answer.text
            assert "memory is full" in problem(answer)["detail"]
        assert (await http.get(f"/v1/jobs/{job['id']}", headers=headers)).status_code == 200
        assert (await http.post(f"/v1/jobs/{job['id']}/cancel", headers=headers)).json()["status"] == "canceled"
    finally:
        redis.config_set("maxmemory", 0)
    assert (await http.get("/readyz")).status_code == 200


async def test_a_queue_whose_disk_refuses_says_so(served: Served, redis: Redis) -> None:
    _, http = served
    headers = bearing(key_of(redis, "acme", Limits(requests_per_minute=1_000)))
    job = (await http.post("/v1/jobs", json=SONG, headers=headers)).json()
    file = Path(str(redis.config_get("dir")["dir"])) / str(redis.config_get("dbfilename")["dbfilename"])
    file.unlink(missing_ok=True)
    (file / "in the way").mkdir(parents=True)  # of the snapshot: its rename fails
    redis.config_set("save", "3600 1")
    try:
        redis.bgsave()
        await until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")
        for answer in (await http.post("/v1/jobs", json=SONG, headers=headers), await http.get("/readyz")):
            assert (answer.status_code, problem(answer)["code"]) == (503, "queue_full"), answer.text
            assert "disk" in problem(answer)["detail"]
            assert answer.headers["Retry-After"]
        await asyncio.sleep(MAX_AGE_S)  # the pools' status is shared for so long
        assert (await http.get(f"/v1/jobs/{job['id']}", headers=headers)).json()["waiting_code"] == "queue"
    finally:
        shutil.rmtree(file)
        redis.config_set("save", "")
    assert (await http.post("/v1/jobs", json=SONG, headers=headers)).status_code == 202


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a mebibyte."""
    with small_tmpfs(tmp_path / "small", "size=1m") as place:
        yield place


async def test_a_store_whose_disk_is_full_says_so_and_what_it_holds_can_be_read(
    small_disk: Path, redis_url: str, redis: Redis
) -> None:
    settings = settings_of(redis_url, f"file://{small_disk}/store")
    headers = bearing(key_of(redis, "acme", Limits(requests_per_minute=1_000)))
    song = {**headers, "Content-Type": "audio/wav"}
    async with serving(settings) as (_, http):
        kept = (await http.post("/v1/uploads", content=wav(bytes(48_000)), headers=song)).json()["id"]
        (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free))
        full = await http.post("/v1/uploads", content=wav(bytes(48_000)), headers=song)
        ready = await http.get("/readyz")
        for answer in (full, ready):
            assert answer.status_code == 503, answer.text
            assert "is full" in problem(answer)["detail"]
            assert answer.headers["Retry-After"]
        assert problem(full)["code"] == "store_unavailable"
        assert (await http.get(f"/v1/uploads/{kept}", headers=headers)).status_code == 200
        (small_disk / "other").unlink()
        assert (await http.post("/v1/uploads", content=wav(bytes(48_000)), headers=song)).status_code == 201


async def test_a_queue_that_ended_on_a_full_disk_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(settings_of(f"unix://{tmp_path}/valkey.sock", f"file://{tmp_path}/store", auth=False))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        monkeypatch.setattr("serinette.store._LEAST_FREE_BYTES", 0)
        assert problem(await http.post("/v1/jobs", json=SONG))["code"] == "queue_unavailable"
        monkeypatch.setattr("serinette.store._LEAST_FREE_BYTES", 2**60)
        answers = [
            await http.post("/v1/jobs", json=SONG),
            await http.post("/generate_music", json=SONG),
            await http.post("/release_task", json=SONG),
            await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "jazz"}]}),
            await http.get("/health"),
        ]
    assert problem(answers[0])["code"] == "queue_full"
    for answer in answers:
        assert answer.status_code == 503
        assert f"the disk of {tmp_path}/store is full" in answer.text, answer.url


@pytest.mark.parametrize(("number", "words"), [(errno.EMFILE, "files and connections"), (errno.ENOSPC, "disk")])
async def test_a_machine_that_has_no_room_is_told_apart_from_a_fault(
    served: Served, redis: Redis, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    _, http = served
    headers = bearing(key_of(redis, "acme"))

    def full(*_: object, **__: object) -> None:
        raise OSError(number, "no room")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    for answer in (
        await http.post("/v1/uploads", content=b"x", headers=headers),
        await http.post("/v1/batches", json={"specs": [SONG]}, headers=headers),
    ):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), answer.text
        assert words in problem(answer)["detail"]
    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", full)
    body, kind = form(1, 10, file=True)
    answer = await http.post("/release_task", content=body, headers={**headers, "Content-Type": kind})
    assert answer.status_code == 503, answer.text


def test_a_gateways_temporary_files_are_in_a_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("serinette.logs.configure", lambda *_: None)
    seen: list[str] = []

    def serve(_: object) -> int:
        seen.append(tempfile.gettempdir())
        return 0

    monkeypatch.setattr(program, "_serve", serve)
    assert program.main() == 0
    assert seen[0].startswith(str(tmp_path / "serinette-api-"))
    assert list(tmp_path.iterdir()) == []
