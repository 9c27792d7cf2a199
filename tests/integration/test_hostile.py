"""What no honest client sends, over all dialects: no error of ours, no hang, and nothing that grows."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis import Redis
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from serinette.settings import SharedSettings
from serinette.store import Store
from tests import hostile
from tests.gateways import HandSlot, RunningGateway, gateway
from tests.processes import eventually
from tests.unit.tenants import bearing, key_of

# Without whose use a gateway's own fluctuation would hide it.
ROUNDS = 3
RSS_SLACK_BYTES = 48 * 2**20

# Keys of these kinds end by themselves within a day.
_THAT_EXPIRE = (b":usage:", b":rate:", b":erased:")


@dataclass(frozen=True)
class Target:
    """A gateway that asks for keys, and what is attacked there."""

    running: RunningGateway
    redis: Redis
    key: str
    job_id: str
    theirs: str
    directory: Path

    def send(self, data: bytes, *, whole: bool = False) -> bytes:
        """Send bytes, shut down sending unless they are a `whole` request, and read the answer's beginning."""
        with socket.create_connection(("127.0.0.1", self.running.port), timeout=60) as connection:
            with suppress(OSError):  # closed by then: nothing can be said any more
                connection.sendall(data)
                if not whole:
                    connection.shutdown(socket.SHUT_WR)
            response = b""
            with suppress(ConnectionError):
                while len(response) < 65_536 and (piece := connection.recv(65_536)):
                    response += piece
            return response

    def ask(self, line: str, headers: list[bytes], body: bytes | None = None) -> bytes:
        """Send one whole request, as written."""
        head = [f"{line} HTTP/1.1".encode(), b"host: x", f"authorization: Bearer {self.key}".encode(), *headers]
        if body is not None:
            head += [b"content-type: application/json", f"content-length: {len(body)}".encode()]
        return self.send(b"\r\n".join([*head, b"connection: close", b"", body or b""]), whole=True)

    def held(self) -> dict[str, Any]:
        """What the gateway holds now."""
        process = psutil.Process(self.running.process.pid)
        tmp = [path for path in (self.directory / "tmp").rglob("*") if path.is_file()]
        stored = [path for path in (self.directory / "store").rglob("*") if path.is_file()]
        return {
            "connections": len(process.net_connections("tcp")),
            "children": len(process.children()),
            "files": len(tmp) + len(stored),
            "keys": {key for key in self.redis.scan_iter() if not any(kind in key for kind in _THAT_EXPIRE)},
        }


@pytest.fixture
def target(tmp_path: Path, redis_url: str, redis: Redis, file_store_url: str) -> Iterator[Target]:
    key, other = key_of(redis, "acme"), key_of(redis, "other")
    settings = {"auth": True, "key_in_path": True, "max_wait_s": 0.05}
    with gateway(tmp_path, redis_url, file_store_url, **settings) as running:
        ids = []
        for one in (key, other):
            with httpx.Client(base_url=running.url, headers=bearing(one)) as http:
                ids.append(http.post("/v1/jobs", json={"prompt": "jazz"}).json()["id"])
                http.post(f"/v1/jobs/{ids[-1]}/cancel").raise_for_status()
        yield Target(running, redis, key, ids[0], ids[1], tmp_path)


def status(response: bytes) -> int:
    """The status of an answer; 0: the connection was closed without one."""
    return int(response.split(b" ", 2)[1]) if response else 0


def clean(target: Target) -> None:
    """Erase the jobs that were accepted after all: some of this is only odd. Their clients may not know."""
    with httpx.Client(base_url=target.running.url, headers=bearing(target.key), timeout=60) as http:
        while ids := [job["id"] for job in http.get("/v1/jobs?limit=100").json()["jobs"] if job["id"] != target.job_id]:
            for job_id in ids:
                http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
                http.delete(f"/v1/jobs/{job_id}").raise_for_status()


def attack(target: Target) -> None:
    """One round of everything that is cheap."""
    for path in hostile.POSTS:
        for name, body in hostile.BODIES.items():
            response = target.ask(f"POST {path}", [], body)
            assert status(response) < 500 or status(response) == 501, (path, name, response[:500])
    for line, headers in hostile.heads(target.job_id, target.theirs):
        response = target.ask(line, headers)
        assert status(response) < 500, (line[:200], headers[:2], response[:500])
        assert b"set-cookie" not in response.partition(b"\r\n\r\n")[0].lower(), line
        if target.theirs in line and status(response) == 200:
            assert target.theirs.encode() not in response.partition(b"\r\n\r\n")[2], line
    for data in hostile.raw(target.key):
        response = target.send(data)
        assert status(response) < 500, (data[:300], response[:500])
    sockets(target)
    clean(target)


def sockets(target: Target) -> None:
    """WebSockets that talk nonsense, and requests that stop half way; meanwhile others are served."""
    with ExitStack() as open_ones:
        for half in (b"GET", b"POST /v1/jobs HTTP/1.1\r\ncontent-le", hostile.raw(target.key)[14]):
            for _ in range(20):
                connection = socket.create_connection(("127.0.0.1", target.running.port), timeout=60)
                open_ones.enter_context(connection)
                connection.sendall(half)
        url = f"{target.running.url.replace('http', 'ws')}/v1/jobs/{target.job_id}/events"
        for message in ("{" * 1_000, b"\x00" * 100_000, "\U0001f3b5", ""):
            with suppress(WebSocketException), connect(url, additional_headers=bearing(target.key)) as listener:
                listener.send(message)
                listener.recv(timeout=60)
        with pytest.raises(WebSocketException):
            connect(f"{url}x", additional_headers=bearing(target.key))
        assert httpx.get(f"{target.running.url}/healthz", timeout=60).status_code == 200


@pytest.mark.timeout(900)
def test_nothing_breaks_hangs_or_grows(target: Target) -> None:
    process = psutil.Process(target.running.process.pid)
    attack(target)
    before, rss_bytes, threads = target.held(), process.memory_info().rss, process.num_threads()
    for _ in range(ROUNDS - 1):
        attack(target)
    gc.collect()
    assert eventually(lambda: target.held()["connections"] <= before["connections"] + 1, 120), target.held()
    after = target.held()
    assert after["keys"] == before["keys"]
    assert (after["children"], after["files"]) == (0, before["files"])
    assert process.num_threads() <= threads + 8, "threads of pools that were not all started"
    assert process.memory_info().rss - rss_bytes < RSS_SLACK_BYTES


def test_answers_with_songs_in_them_are_streamed(target: Target) -> None:
    """Four at once of 40 MiB, which in base64 and JSON would be 600 MiB if they were held in memory: by GET, by POST,
    and as Server-Sent Events.
    """
    slot = HandSlot(target.redis, Store.open(SharedSettings(store_url=f"file://{target.directory / 'store'}")))
    headers = bearing(target.key)
    process = psutil.Process(target.running.process.pid)
    with httpx.Client(base_url=target.running.url, headers=headers, timeout=60) as http:
        asked: dict[str, Any] = {"json": {"messages": [{"role": "user", "content": "jazz"}]}}
        asked["headers"] = {"Idempotency-Key": "the same song"}
        seed = http.post("/generate_music_async", json={"return_file_data": True}).json()["request_id"]
        later = http.post("/v1/chat/completions", **asked)
        assert later.status_code == 303
        chat = later.headers["location"].rpartition("/")[2].partition("?")[0]
        for job_id in (seed, chat):
            slot.claim(job_id)
            slot.succeed(job_id, [bytes(40 * 2**20)], tenant="acme")
        before = process.memory_info().rss
        calls: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", f"/v1/chat/completions/{chat}", {}),
            ("GET", f"/result/{seed}?format=json", {}),
            ("POST", "/v1/chat/completions", asked),
            ("POST", "/v1/chat/completions", asked | {"json": asked["json"] | {"stream": True}}),
        ]
        most = 0
        with ExitStack() as open_ones:
            answers = [open_ones.enter_context(http.stream(method, path, **sent)) for method, path, sent in calls]
            assert [answer.status_code for answer in answers] == [200] * 4
            sizes = [0] * len(answers)
            for number, chunks in enumerate(zip(*(answer.iter_raw(2**20) for answer in answers), strict=False)):
                sizes = [size + len(chunk) for size, chunk in zip(sizes, chunks, strict=True)]
                if number % 8 == 0:
                    most = max(most, process.memory_info().rss)
        assert min(sizes) > 40 * 2**20
        assert most - before < RSS_SLACK_BYTES * 2


@pytest.mark.timeout(900)
def test_no_file_that_only_pretends_is_kept(target: Target) -> None:
    before = target.held()
    with httpx.Client(base_url=target.running.url, headers=bearing(target.key), timeout=300) as http:
        for name, data in hostile.audio().items():
            response = http.post("/v1/uploads", content=data)
            assert response.status_code == 422, (name, response.text)
            assert "passwd" not in response.text
        form: dict[str, Any] = {
            "files": {"src_audio": ("../../x.wav", hostile.audio()["playlist"])},
            "data": {"task_type": "cover"},
        }
        assert http.post("/release_task", **form).status_code == 400
        form = {"files": {"audio_file": ("\r\n.wav", hostile.audio()["0 Hz"])}, "data": {"audio2audio_enable": "1"}}
        assert http.post("/generate_music_with_audio", **form).status_code == 422
        response = http.post("/v1/uploads", content=hostile.NOT_A_NUMBER)  # a decoder's silence or noise: no harm here
        assert response.status_code in {201, 422}
        if response.status_code == 201:
            assert http.delete(response.headers["location"]).status_code == 204
    after = target.held()
    assert (after["files"], after["children"], after["keys"]) == (before["files"], 0, before["keys"])
