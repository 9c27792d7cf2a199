"""Bodies of requests: slow ones hold no turn, and none of the room that others need; nothing of them stays."""

from __future__ import annotations

import asyncio
import base64
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis
from starlette.types import Message, Receive, Scope, Send

from api import bodies, uploads
from api.bodies import Bodies, BodyBounds, BodyLimits
from serinette.errors import Limited, TooLarge
from serinette.media import AudioInfo
from tests.gateways import problem
from tests.unit.tenants import SONG, bearing, key_of, serving, settings_of

pytestmark = pytest.mark.shared_valkey

LONG = b'{"prompt": "' + b"x" * 70_000
Served = tuple[FastAPI, httpx.AsyncClient]


@pytest.fixture
async def served(redis_url: str, file_store_url: str) -> AsyncIterator[Served]:
    async with serving(settings_of(redis_url, file_store_url, max_wait_s=60)) as both:
        yield both


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where bodies lie."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # no event says so
            await asyncio.sleep(0.01)


def nothing_lies_in(directory: Path) -> bool:
    return not any(directory.iterdir())


def json_of(key: str) -> dict[str, str]:
    """Headers of a JSON body."""
    return {**bearing(key), "Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "start", "kind", "status"),
    [
        ("/v1/jobs", LONG, "application/json", 422),
        ("/generate_music_with_audio_json", LONG, "application/json", 422),
        ("/release_task", b"prompt=" + b"x" * 70_000, "application/x-www-form-urlencoded", 400),
    ],
)
async def test_whoever_sends_slowly_holds_up_nobody(
    served: Served, redis: Redis, path: str, start: bytes, kind: str, status: int
) -> None:
    app, http = served
    goes_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield start
        await goes_on.wait()
        yield b'"}'

    keys = {f"slow-{number}": key_of(redis, f"slow-{number}") for number in range(8)}
    many = [
        asyncio.create_task(
            http.post(path, content=slowly(), headers={**bearing(key), "Content-Type": kind}, timeout=120)
        )
        for key in keys.values()
        for _ in range(3)
    ]
    await until(lambda: sum(map(app.state.parts.bodies.held, keys)) == len(many))
    headers = {**bearing(key_of(redis, "other")), "Content-Type": kind}
    answer = await asyncio.wait_for(http.post(path, content=start + b'"}', headers=headers), 30)
    assert answer.status_code == status, answer.text
    assert (await http.post("/v1/jobs", json=SONG, headers=bearing(keys["slow-0"]))).status_code == 202
    goes_on.set()
    assert {answer.status_code for answer in await asyncio.gather(*many)} == {status}


async def test_a_body_that_is_not_read_holds_no_turn(served: Served, redis: Redis) -> None:
    app, http = served
    waiting = []
    for number in range(8):
        headers = json_of(key_of(redis, f"waits-{number}"))
        job_id = (await http.post("/v1/jobs", json=SONG, headers=headers)).json()["id"]
        headers["Prefer"] = "wait=50"
        url = f"/v1/jobs/{job_id}"
        waiting += [asyncio.create_task(http.request("GET", url, content=LONG, headers=headers)) for _ in range(2)]
    await until(lambda: sum(app.state.parts.events.waits.held(f"waits-{number}") for number in range(8)) == 16)
    headers = json_of(key_of(redis, "other"))
    assert (await http.post("/v1/jobs", content=LONG + b'"}', headers=headers)).status_code == 422
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()


async def test_too_many_bodies_of_one_tenant_are_refused_and_short_ones_are_not(
    served: Served, redis: Redis, scratch: Path
) -> None:
    app, http = served
    greedy, other = key_of(redis, "greedy"), key_of(redis, "other")

    async def slowly(start: bytes) -> AsyncIterator[bytes]:
        yield start
        await asyncio.sleep(3600)

    bound = bodies.BODIES_OF_TENANT
    many = [
        asyncio.create_task(http.post(path, content=slowly(start), headers=json_of(greedy), timeout=120))
        for path, start in (("/v1/jobs", LONG), ("/v1/uploads", b"x"), ("/v1/batches", b"{"))
        for _ in range(bound // 2)
    ]
    await until(lambda: sum(request.done() for request in many) == len(many) - bound)
    for answer in (request.result() for request in many if request.done()):
        assert (answer.status_code, problem(answer)["code"], "Retry-After" in answer.headers) == (429, "limited", True)
    assert (await http.post("/v1/jobs", json=SONG, headers=bearing(greedy))).status_code == 202
    assert (await http.post("/v1/jobs", content=LONG + b'"}', headers=json_of(other))).status_code == 422
    for request in many:
        request.cancel()
    await asyncio.gather(*many, return_exceptions=True)
    assert (app.state.parts.bodies.held("greedy"), nothing_lies_in(scratch)) == (0, True)


async def test_who_sends_no_key_takes_no_room_of_a_tenant(served: Served) -> None:
    app, http = served

    async def slowly() -> AsyncIterator[bytes]:
        yield LONG
        await asyncio.sleep(3600)

    for path in ("/healthz", "/studio/none.js"):
        answer = await asyncio.wait_for(http.post(path, content=slowly()), 20)
        assert (answer.status_code, app.state.parts.bodies.held("default")) == (405, 0)


async def test_bodies_with_audio_in_base64_take_turns(
    served: Served, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, http = served
    goes_on, proving = threading.Event(), []

    def prove(path: Path, **_: object) -> AudioInfo:
        proving.append(path)
        assert goes_on.wait(60)
        return AudioInfo(duration_s=1, sample_rate=48_000, channels=2, codec="flac", container="flac")

    monkeypatch.setattr(uploads, "prove_audio", prove)
    path, body = "/generate_music_with_audio_json", {"audio_base64": base64.b64encode(bytes(70_000)).decode()}
    many = [
        asyncio.create_task(http.post(path, json=body, headers=bearing(key_of(redis, tenant)), timeout=120))
        for tenant in ("a", "a", "a", "b", "b", "b", "c")
    ]
    try:
        await until(lambda: len(proving) == 3)  # as many as are proved at once
        long = http.post("/v1/jobs", content=LONG + b'"}', headers=json_of(key_of(redis, "other")))
        assert (await asyncio.wait_for(long, 30)).status_code == 422, "those that wait for memory hold no turn"
    finally:
        goes_on.set()
    assert {answer.status_code for answer in await asyncio.gather(*many)} == {200}


async def test_a_stream_of_a_song_holds_no_memory_of_bodies(
    served: Served, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, http = served
    info = AudioInfo(duration_s=1, sample_rate=48_000, channels=2, codec="flac", container="flac")
    monkeypatch.setattr(uploads, "prove_audio", lambda _path, **_: info)
    audio = {"type": "input_audio", "input_audio": {"data": base64.b64encode(bytes(70_000)).decode()}}
    content = [{"type": "text", "text": "<prompt>x</prompt>"}, audio]
    body = {"messages": [{"role": "user", "content": content}], "task_type": "cover", "stream": True}
    path, keys = "/v1/chat/completions", {tenant: key_of(redis, tenant) for tenant in "ab"}
    many = [
        asyncio.create_task(http.post(path, json=body, headers=bearing(key), timeout=120))
        for key in keys.values()
        for _ in range(2)
    ]
    await until(lambda: sum(map(app.state.parts.events.streams.held, keys)) == len(many))
    other = http.post(path, content=LONG + b'"}', headers=json_of(key_of(redis, "other")))
    assert (await asyncio.wait_for(other, 30)).status_code == 400
    assert not any(task.done() for task in many)
    for task in many:
        task.cancel()


async def nowhere(_message: Message) -> None:
    """Whoever sends here is not answered."""


def bounds_of(app: Any, most_bytes: int) -> BodyBounds:
    return BodyBounds(app, Bodies(1_000_000), BodyLimits(most_bytes))


def scope_of(*header: bytes) -> Scope:
    return {"type": "http", "path": "/v1/jobs", "headers": [header], "app": FastAPI()}


async def test_after_a_long_body_its_tenant_leaves_the_event_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.turns._LONGEST_REST_S", 3600)
    monkeypatch.setattr(bodies, "_REST", 1e6)
    begun = []

    async def parses(scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        begun.append(scope["tenant"])
        busy_s = time.thread_time()
        while time.thread_time() - busy_s < 0.005:  # as a parser does
            pass

    async def body() -> Message:
        return {"type": "http.request", "body": bytes(100_000), "more_body": False}

    class Caller:
        def __init__(self, tenant: str) -> None:
            self.tenant = tenant

    def request(tenant: str) -> Any:
        scope = scope_of(b"content-length", b"100000")
        return bounds({**scope, "tenant": tenant, "serinette.caller": Caller(tenant)}, body, nowhere)

    bounds = bounds_of(parses, 1_000_000)
    greedy = [asyncio.create_task(request("greedy")) for _ in range(3)]
    await until(lambda: sum(task.done() for task in greedy) == 2)
    await request("other")
    await asyncio.sleep(0.1)
    assert begun == ["greedy", "greedy", "other"], "two at once; the third after many times as long"
    for task in greedy:
        task.cancel()


async def test_a_body_that_is_refused_on_the_way_or_breaks_off_leaves_nothing(scratch: Path) -> None:
    whole: list[object] = []

    async def reads(_scope: Scope, receive: Receive, _send: Send) -> None:
        assert nothing_lies_in(scratch)
        whole.append(await receive())

    async def request(most_bytes: int, *messages: Message) -> list[Message]:
        left, answered = list(messages), []

        async def receive() -> Message:
            return left.pop(0)

        async def send(message: Message) -> None:
            answered.append(message)

        app = FastAPI()
        app.state.dialects_below_v1 = set()
        scope = {**scope_of(b"transfer-encoding", b"chunked"), "app": app}
        await bounds_of(reads, most_bytes)(scope, receive, send)
        assert nothing_lies_in(scratch)
        return answered

    part = {"type": "http.request", "body": bytes(50_000), "more_body": True}
    for most_bytes, parts in ((40_000, 1), (110_000, 3)):
        assert (await request(most_bytes, *[part] * parts))[0]["status"] == 413
    for parts in (1, 3):
        assert await request(1_000_000, *[part] * parts, {"type": "http.disconnect"}) == []
    assert whole == []
    short = {"type": "http.request", "body": b"{}", "more_body": False}
    assert await request(1_000_000, short) == []
    assert whole == [short]


class Sender:
    """A body that comes piece by piece as it is told to."""

    def __init__(self, kept: Bodies, tenant: str) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.came = 0
        self.whole = asyncio.create_task(self._receive(kept, tenant))

    async def send(self, size_bytes: int) -> None:
        self._pieces.put_nowait(bytes(size_bytes))
        wanted = self.came + size_bytes
        await until(lambda: self.came >= wanted or self.whole.done())

    async def _all(self) -> AsyncIterator[bytes]:
        while piece := await self._pieces.get():
            yield piece
            self.came += len(piece)

    async def _receive(self, kept: Bodies, tenant: str) -> bytes:
        async with kept.received(tenant, self._all(), 1_000) as body:
            return body.path.read_bytes()

    async def end(self) -> bytes:
        self._pieces.put_nowait(b"")
        return await self.whole


async def test_room_is_made_by_the_newest_of_whoever_holds_the_most(scratch: Path) -> None:
    kept = Bodies(1_000)  # 8,000 bytes, 4,000 of one tenant
    by_tenant = {name: [Sender(kept, name) for _ in range(4)] for name in "ab"}
    for senders in by_tenant.values():
        for sender in senders:
            await sender.send(950)
    greedy = Sender(kept, "a")
    await greedy.send(400)
    with pytest.raises(Limited, match="no room for more of this tenant's"):
        await greedy.whole
    late = Sender(kept, "c")
    for _ in range(8):
        await late.send(100)
    assert await late.end() == bytes(800)
    ended = {name: [sender.whole.done() for sender in senders] for name, senders in by_tenant.items()}
    assert sorted(ended.values()) == [[False] * 4, [False, False, False, True]], "one was enough"
    gone = next(sender for senders in by_tenant.values() for sender in senders if sender.whole.done())
    assert isinstance(gone.whole.exception(), Limited)
    for sender in (sender for senders in by_tenant.values() for sender in senders if sender is not gone):
        assert await sender.end() == bytes(950)
    too_long = Sender(kept, "c")
    await too_long.send(1_001)
    with pytest.raises(TooLarge, match="1000 bytes allowed here"):
        await too_long.whole
    assert nothing_lies_in(scratch)
