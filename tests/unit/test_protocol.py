"""Requests that never come whole are ended; whole ones, however slow within bounds, are not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn

from api import http_protocol as protocol
from api.http_protocol import BoundedHttpProtocol, BoundedWebSocketProtocol

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n"
UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
# What an endless sender gives up after, and what it may get rid of: the kernel's own buffers on both sides.
ENDLESS_BYTES, GONE_BYTES = 64 * 2**20, 24 * 2**20

scopes: list[Any] = []
sent = asyncio.Event()
gone = asyncio.Event()


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    """Answers without reading, as a refused key is answered."""
    del receive
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers how many bytes came."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        return
    if scope["type"] != "http":
        return
    scopes.append(scope)
    if scope["path"] == "/long":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1_000):
            await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
        sent.set()
        return
    if scope["path"] == "/refused":
        await refuse(scope, receive, send)
        return
    if scope["path"] == "/waits":
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    text = str(size).encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(protocol, "HEAD_S", 1.0)
    monkeypatch.setattr(protocol, "BODY_S", 1.0)
    monkeypatch.setattr(protocol, "DISCARD_S", 1.0, raising=False)
    monkeypatch.setattr(protocol, "UNREAD_S", 1.0, raising=False)
    scopes.clear()
    sent.clear()
    gone.clear()
    config = uvicorn.Config(
        echo, port=0, http=BoundedHttpProtocol, ws=BoundedWebSocketProtocol, lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(60):
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True  # also where a connection was not ended
    await serving


async def response_to(port: int, *parts: bytes) -> bytes:
    """What is answered, until the server closes or the answer is whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.05)
        return await asyncio.wait_for(reader.read(1000), 60)
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "parts",
    [(), (b"GET",), (HEAD, b"a: b\r\n"), (b"\r\n",)],
    ids=["nothing", "half a word", "half a head", "an empty line"],
)
async def test_what_never_comes_whole_is_ended(port: int, parts: tuple[bytes, ...]) -> None:
    assert await response_to(port, *parts) == b""


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ((HEAD, b"a: ", *[b"x" * 16_384] * 5), 431, b"65536 bytes allowed"),
        ((b"what?\r\n\r\n",), 400, b"no HTTP/1.1 request"),
        ((CHUNKED + b"no number\r\n",), 400, b"no HTTP/1.1 request"),
        ((HEAD + b"content-length: 9\r\n\r\n", b"123"), 408, b"the body came too slowly"),
    ],
    ids=["a head without an end", "no HTTP", "no chunk", "half a body"],
)
async def test_what_the_application_cannot_answer_is_refused_in_words(
    port: int, parts: tuple[bytes, ...], status: int, words: bytes
) -> None:
    head, _, body = (await response_to(port, *parts)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert {b"connection: close", b"content-length: %d" % len(body)} <= {*head.split(b"\r\n")}
    assert b"\r\nx-request-id: " in head
    problem = json.loads(body)
    assert (problem["status"], problem["code"], words in body) == (status, "bad_request", True)
    assert problem["retryable"] == (status == 408)


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_websocket_begins(port: int, is_first: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if not is_first:
        writer.write(HEAD + b"content-length: 2\r\n\r\n{}")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n2"), 60)).startswith(b"HTTP/1.1 200 ")
    writer.write(UPGRADE + b"\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).startswith(b"HTTP/1.1 101 ")
    writer.close()


@pytest.mark.parametrize(
    "headers",
    [
        b"content-length: 2\r\n\r\n{}",
        b"transfer-encoding: chunked\r\n\r\n",
        b"a: b\r\n" * 150 + b"\r\n",
        b"a: " + b"x" * 9_000 + b"\r\n\r\n",
    ],
    ids=["a body", "chunks", "many headers", "a long header"],
)
async def test_an_upgrade_that_cannot_be_taken_is_refused_in_words(port: int, headers: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(UPGRADE + headers)
    answer = await asyncio.wait_for(reader.read(), 60)
    assert (answer[:13], b"a WebSocket begins with a GET" in answer) == (b"HTTP/1.1 400 ", True)
    writer.close()


async def test_an_upgrade_does_not_come_before_the_answer_to_the_request_before(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /waits HTTP/1.1\r\nhost: x\r\n\r\n" + UPGRADE + b"\r\n")
    assert await asyncio.wait_for(reader.read(), 60) == b""
    await asyncio.wait_for(gone.wait(), 60)
    writer.close()


@pytest.mark.parametrize("ends_itself", [True, False])
async def test_a_request_before_another_hears_that_its_client_is_gone(port: int, ends_itself: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /waits HTTP/1.1\r\nhost: x\r\n\r\n" + HEAD + b"content-length: 9\r\n\r\n123")
    if ends_itself:
        await writer.drain()
        await asyncio.sleep(0.05)
    else:  # the second body is too slow: no answer to it could come before that to the first
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    await asyncio.wait_for(gone.wait(), 10)


async def test_a_late_end_of_a_slow_body_is_no_request(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + b"content-length: 9\r\n\r\n123")
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    writer.write(b"456789" + HEAD + b"\r\n")
    assert b"HTTP/1.1" not in await asyncio.wait_for(reader.read(), 60)
    writer.close()


@pytest.mark.parametrize("rest", [b"no number\r\n", b"100000\r\n" + bytes(2**20)], ids=["malformed", "too long"])
async def test_what_is_discarded_gets_no_answer_of_its_own(port: int, rest: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /refused HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nno"), 60)).startswith(b"HTTP/1.1 401 ")
    writer.write(rest)
    with suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 60) == b""
    writer.close()


async def test_whole_requests_come_through(port: int) -> None:
    once = HEAD + b"content-length: 4\r\n\r\n"
    assert (await response_to(port, once, b"12", b"34")).endswith(b"\r\n\r\n4")
    assert (await response_to(port, once + b"1234" + once + b"1234")).count(b"HTTP/1.1 200") >= 1
    slow = [once, *(b"%d" % number for number in range(4))]
    assert (await response_to(port, *slow)).endswith(b"\r\n\r\n4")
    big = HEAD + b"content-length: 300000\r\n\r\n"
    assert (await response_to(port, big + b"x" * 300_000)).endswith(b"300000")


def flood(port: int, start: bytes, piece: bytes) -> tuple[int, bytes]:
    """Bytes that went out until the server closed, and what it answered."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", port))
        sent, received = len(start), b""
        with suppress(ConnectionError):
            connection.sendall(start)
            while sent < ENDLESS_BYTES:
                connection.sendall(piece)
                sent += len(piece)
        with suppress(ConnectionError):
            while sent < ENDLESS_BYTES and (more := connection.recv(65_536)):
                received += more
        return sent, received


def trailers() -> bytes:
    """64 KiB of them, none twice."""
    return b"".join(b"A%06d: b\r\n" % number for number in range(5_500))


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (CHUNKED + b"0\r\n", trailers()),
        (CHUNKED + b"0\r\na: ", b"x" * 65_536),
        (CHUNKED + b"2;", b"x" * 65_536),
        (HEAD + b"content-length: 0\r\n\r\n", b"\r\n" * 32_768),
    ],
    ids=["trailers", "one trailer", "a chunk's extension", "empty lines"],
)
async def test_what_never_ends_behind_a_head_is_refused(port: int, start: bytes, piece: bytes) -> None:
    sent, _ = await asyncio.to_thread(flood, port, start, piece)
    assert sent < GONE_BYTES
    assert [len(scope["headers"]) for scope in scopes] == [2], "trailers are no headers, and are not kept"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", trailers()),
        (b"transfer-encoding: chunked\r\n\r\n", b"8000\r\n" + b"x" * 32_768 + b"\r\n"),
        (b"content-length: 99999999999\r\n\r\n", b"x" * 65_536),
    ],
    ids=["trailers", "chunks", "a length"],
)
async def test_an_unused_body_is_not_read_for_ever(port: int, head: bytes, piece: bytes) -> None:
    sent, _ = await asyncio.to_thread(flood, port, HEAD.replace(b"/ ", b"/refused ") + head, piece)
    assert sent < GONE_BYTES


async def test_an_answer_before_the_body_reaches_its_client(port: int) -> None:
    refused = HEAD.replace(b"/ ", b"/refused ") + b"content-length: 300000\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):  # the rest is small: read over, so that the connection serves the next request
        writer.write(refused)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\nno"), 60)).startswith(b"HTTP/1.1 401 ")
        writer.write(b"x" * 300_000)
        await writer.drain()
    writer.write(refused + b"12")  # and nothing more
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\nno"), 60)
    assert await asyncio.wait_for(reader.read(), 60) == b"", "closed, though uvicorn would keep it"
    writer.close()


async def test_a_trailer_is_no_header(port: int) -> None:
    answer = await response_to(port, CHUNKED + b"0\r\nauthorization: Bearer x\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n2")
    assert [name for name, _ in scopes[0]["headers"]] == [b"host", b"transfer-encoding"]


async def test_a_body_that_trickles_is_ended_though_each_of_its_pauses_is_short(port: int) -> None:
    once = HEAD + b"content-length: 99999999\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(once)
    ended = asyncio.create_task(reader.read())
    with suppress(ConnectionError):
        for _ in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.wait({ended}, timeout=0.1)
            if ended.done():
                break
    assert ended.done(), "its pauses are a tenth of what one may last, its rate a four-hundredth"
    assert ended.result().startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_an_answer_that_is_not_read_is_not_held_for_ever(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
    writer.write(HEAD.replace(b"/ ", b"/long ").replace(b"POST", b"GET") + b"\r\n")
    await reader.readexactly(4)  # and then nothing more: its side is full
    await asyncio.wait_for(sent.wait(), 60)
    with suppress(ConnectionError):
        while await reader.read(65_536):
            pass
    writer.close()


async def test_an_answer_that_is_read_with_pauses_comes_whole(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD.replace(b"/ ", b"/long ").replace(b"POST", b"GET") + b"connection: close\r\n\r\n")
    size_bytes = 0
    for _ in range(4):
        size_bytes += len(await reader.readexactly(12 * 2**20))
        await asyncio.sleep(0.5)
    size_bytes += len(await reader.read())
    assert size_bytes > 65_536 * 1_000
    writer.close()
