"""Live events over real sockets: SSE and WebSocket, resumed elsewhere, many listeners, an orderly end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from serinette.job import JobError
from serinette.names import Keys
from tests.gateways import HandSlot, RunningGateway, gateway, problem

LOST = JobError(code="worker_lost", message="gone", retryable=True)
# What a listener gives up after: more than kernels hold of it, and less than uvicorn keeps of one message.
ENDLESS_BYTES = 14 * 2**20
WHOLE = ["started", "progress", "attempt", "started", "progress", "succeeded"]


def submit(url: str) -> str:
    job_id: str = httpx.post(f"{url}/v1/jobs", json={"prompt": "x"}).json()["id"]
    return job_id


def generate(slot: HandSlot, job_id: str) -> None:
    """A job with one lost attempt: the events of WHOLE."""
    slot.claim(job_id, attempt_id="first")
    slot.step(job_id, 1, "first")
    slot.end_attempt(job_id, LOST, "first")
    slot.claim(job_id, attempt_id="second")
    slot.step(job_id, 8, "second")
    slot.succeed(job_id, [b"song"], attempt_id="second")


def messages(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Parsed events; the SSE fields must say the same as the message."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            message = json.loads(fields["data"])
            assert (fields["event"], fields["id"]) == (message["type"], message["id"])
            yield message
            fields = {}


def listen(url: str, job_id: str, **headers: str) -> list[dict[str, Any]]:
    """All messages until the stream ends."""
    with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/events", headers=headers, timeout=30) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(messages(answer.iter_lines()))


def test_events_as_they_happen(two_gateways: tuple[RunningGateway, RunningGateway], slot: HandSlot) -> None:
    url = two_gateways[0].url
    job_id = submit(url)
    with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/events", timeout=30) as answer:
        received = messages(answer.iter_lines())
        status = next(received)
        assert (status["type"], status["data"]["status"], status["data"]["id"]) == ("status", "queued", job_id)
        slot.claim(job_id)
        assert next(received)["type"] == "started"
        slot.step(job_id, 3)
        progress = next(received)
        assert (progress["type"], progress["data"]["step"], progress["data"]["steps"]) == ("progress", 3, 8)
        assert 0 < progress["data"]["fraction"] < 1
        httpx.post(f"{url}/v1/jobs/{job_id}/cancel")
        assert next(received)["type"] == "cancel_requested"
        slot.succeed(job_id, [b"song"])
        assert next(received)["type"] == "succeeded"
        assert next(received, None) is None


def test_a_late_listener_learns_the_end(two_gateways: tuple[RunningGateway, RunningGateway], slot: HandSlot) -> None:
    url = two_gateways[0].url
    job_id = submit(url)
    generate(slot, job_id)
    late = listen(url, job_id)
    assert [event["type"] for event in late] == ["status", "succeeded"]
    assert late[0]["data"]["status"] == "succeeded"
    assert [event["type"] for event in listen(url, job_id, **{"Last-Event-ID": "0"})] == ["status", *WHOLE]
    done = httpx.get(f"{url}/v1/jobs/{job_id}/events", headers={"Last-Event-ID": late[-1]["id"]})
    assert (done.status_code, done.content) == (204, b"")  # what makes an EventSource stop


def test_a_job_whose_events_are_forgotten(
    two_gateways: tuple[RunningGateway, RunningGateway], slot: HandSlot, valkey_url: str
) -> None:
    url = two_gateways[0].url
    job_id = submit(url)
    generate(slot, job_id)
    with Redis.from_url(valkey_url) as redis:
        redis.delete(Keys().events(job_id))
    assert [event["type"] for event in listen(url, job_id)] == ["status", "succeeded"]


@pytest.mark.parametrize("last_event_id", ["x", "1-2-3", "-1", "9" * 30, "1-" + "9" * 20, "$", "*", "٣"])
def test_foreign_event_ids_are_refused(two_gateways: tuple[RunningGateway, RunningGateway], last_event_id: str) -> None:
    url = f"{two_gateways[0].url}/v1/jobs/{submit(two_gateways[0].url)}/events"
    received = problem(httpx.get(url, params={"last_event_id": last_event_id}))
    assert (received["status"], received["field"]) == (422, "last_event_id")


def socket_url(running: RunningGateway, job_id: str, query: str = "") -> str:
    return f"ws://127.0.0.1:{running.port}/v1/jobs/{job_id}/events{query}"


def test_a_websocket_sends_the_same(two_gateways: tuple[RunningGateway, RunningGateway], slot: HandSlot) -> None:
    one, two = two_gateways
    job_id = submit(one.url)
    with connect(socket_url(one, job_id), additional_headers={"Origin": one.url}) as websocket:
        first = json.loads(websocket.recv(timeout=10))
        assert (first["type"], first["data"]["status"]) == ("status", "queued")
        websocket.send("whatever")  # what a listener says is not listened to
        websocket.send(b"\x00")
        generate(slot, job_id)
        received = [json.loads(text) for text in websocket]
        assert [event["type"] for event in received] == WHOLE
        assert websocket.close_code == 1000
    streamed = listen(two.url, job_id, **{"Last-Event-ID": "0"})
    assert received == streamed[1:]
    seen = received[-2]["id"]
    for query, headers in ((f"?last_event_id={seen}", {}), ("", {"Last-Event-ID": seen})):
        with connect(socket_url(two, job_id, query), additional_headers=headers) as websocket:
            assert [json.loads(text)["type"] for text in websocket] == ["status", "succeeded"]


def test_websockets_that_break_off_while_they_are_sent_to_are_no_error(
    two_gateways: tuple[RunningGateway, RunningGateway], slot: HandSlot
) -> None:
    job_id = submit(two_gateways[0].url)
    opened = [connect(socket_url(two_gateways[0], job_id)) for _ in range(20)]
    slot.claim(job_id)
    for number, websocket in enumerate(opened):
        slot.step(job_id, number % 8 + 1)
        linger = struct.pack("ii", 1, 0)  # closed by a reset, without a word
        websocket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        websocket.socket.shutdown(socket.SHUT_RD)
        websocket.socket.close()
    slot.succeed(job_id, [b"song"])  # and the gateway's log has no traceback, which its fixture checks
    with connect(socket_url(two_gateways[0], job_id)) as websocket:
        assert json.loads(websocket.recv(timeout=10))["data"]["status"] == "succeeded"


def frames(kind: int, payload: bytes, count: int, *, final: bool = True) -> bytes:
    """As a client sends them, masked with zeros."""
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + len(payload).to_bytes(2, "big")
    return (bytes([kind | (0x80 if final else 0)]) + length + bytes(4) + payload) * count


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"", frames(0x9, b"x" * 120, 500)),
        (frames(0x1, b"x", 1, final=False), frames(0x0, b"", 10_000, final=False)),
        (frames(0x1, b"x", 1, final=False), frames(0x0, b"x" * 60_000, 1, final=False)),
    ],
    ids=["pings whose answers are not read", "a message of endless parts", "a message without an end"],
)
def test_a_listener_that_does_not_stop_talking_is_cut_off(
    two_gateways: tuple[RunningGateway, RunningGateway], first: bytes, more: bytes
) -> None:
    running, sent = two_gateways[0], 0
    head = f"GET /v1/jobs/{submit(running.url)}/events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    head += "Connection: upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as listener:
        listener.sendall(head.encode())
        assert listener.recv(1_000).startswith(b"HTTP/1.1 101 ")
        listener.sendall(first)
        with suppress(ConnectionError, TimeoutError):
            while sent < ENDLESS_BYTES:
                listener.sendall(more)
                sent += len(more)
    assert sent < ENDLESS_BYTES


def test_a_text_that_is_none_ends_a_websocket_without_a_traceback(
    two_gateways: tuple[RunningGateway, RunningGateway],
) -> None:
    with connect(socket_url(two_gateways[0], submit(two_gateways[0].url))) as websocket:
        websocket.recv(timeout=10)
        websocket.socket.sendall(frames(0x1, b"\xff\xfe", 1))
        with pytest.raises(ConnectionClosedError) as closed:
            websocket.recv(timeout=10)
    assert closed.value.rcvd and closed.value.rcvd.code == 1007
    assert "Invalid UTF-8" not in two_gateways[0].log.read_text()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10", 404),
        ("nonsense", 404),
    ],
)
def test_a_websocket_to_nothing(two_gateways: tuple[RunningGateway, RunningGateway], path: str, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(socket_url(two_gateways[0], path)):
        pass
    response = refused.value.response
    assert response.status_code == status
    assert json.loads(response.body)["code"] == "not_found"


def test_no_websocket_elsewhere(two_gateways: tuple[RunningGateway, RunningGateway]) -> None:
    one = two_gateways[0]
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{one.port}/v1/nothing"):
        pass
    response = refused.value.response
    assert (response.status_code, json.loads(response.body)["code"]) == (404, "not_found")
    assert "ERROR" not in one.log.read_text()


async def test_many_listeners_share_one_connection(
    two_gateways: tuple[RunningGateway, RunningGateway], slot: HandSlot, valkey_url: str
) -> None:
    url = two_gateways[0].url
    ids = [submit(url) for _ in range(10)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:

        async def follow(job_id: str) -> list[str]:
            async with http.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
                return [line async for line in answer.aiter_lines() if line.startswith("event: ")]

        async def wait(job_id: str) -> str:
            status: str = (await http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=40"})).json()["status"]
            return status

        following = [asyncio.create_task(follow(job_id)) for job_id in ids for _ in range(10)]
        waiting = [asyncio.create_task(wait(job_id)) for job_id in ids for _ in range(10)]
        await asyncio.sleep(2)
        with Redis.from_url(valkey_url) as redis:
            blocked = [client for client in redis.client_list() if client["cmd"] == "xread"]
            assert len(blocked) <= 2  # one a gateway, for two hundred listeners
        assert (await http.get("/healthz")).status_code == 200
        for job_id in ids:
            await asyncio.to_thread(generate, slot, job_id)
        for lines in await asyncio.gather(*following):
            assert lines[0] == "event: status"
            assert lines[-1] == "event: succeeded"
        assert await asyncio.gather(*waiting) == ["succeeded"] * 100


def test_sigterm_ends_streams_and_waits_in_order(
    valkey_url: str, store_url: str, tmp_path: Path, two_gateways: tuple[RunningGateway, RunningGateway]
) -> None:
    with gateway(tmp_path, valkey_url, store_url) as leaving, ThreadPoolExecutor(3) as threads:
        job_id = submit(leaving.url)
        streamed = threads.submit(listen, leaving.url, job_id)
        prefer = {"Prefer": "wait=45"}
        held = threads.submit(httpx.post, f"{leaving.url}/v1/jobs", json={"prompt": "y"}, headers=prefer, timeout=60)
        with connect(socket_url(leaving, job_id)) as websocket:
            assert json.loads(websocket.recv(timeout=10))["type"] == "status"
            time.sleep(0.5)
            leaving.process.send_signal(signal.SIGTERM)
            assert leaving.process.wait(timeout=20) == 0, leaving.log.read_text()
            with pytest.raises(ConnectionClosedError) as closed:
                websocket.recv(timeout=10)
            assert closed.value.rcvd
            assert closed.value.rcvd.code == 1012  # service restart: come again
        answer = held.result(timeout=10)
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        events = streamed.result(timeout=10)
        assert [event["type"] for event in events] == ["status"]
    # Elsewhere it goes on.
    after = httpx.get(f"{two_gateways[0].url}/v1/jobs/{job_id}").json()
    assert after["status"] == "queued"


def test_a_store_of_no_known_kind_is_a_wrong_setting(tmp_path: Path) -> None:
    given = {**os.environ, "SERINETTE_STORE_URL": "ftp://x/y"}
    command = [sys.executable, "-m", "api"]
    received = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=given, timeout=60)
    assert received.returncode != 0
    assert "store_url" in received.stderr.lower()


def test_no_model_code_in_the_gateway() -> None:
    heavy = "'torch', 'torchaudio', 'diffusers', 'transformers', 'gpu_worker'"
    code = f"import sys, api.app, api.__main__; print([name for name in ({heavy}) if name in sys.modules])"
    received = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert received.stdout.strip() == "[]"
