"""Requests that never come whole are ended; whole ones, however slow within bounds, are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from api import protocol
from api.protocol import PatientUpToAPoint

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers how many bytes came."""
    if scope["type"] != "http":
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
    config = uvicorn.Config(echo, port=0, http=PatientUpToAPoint, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(60):
        while not server.started:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


async def told(port: int, *parts: bytes) -> bytes:
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
    [(), (b"GET",), (HEAD, b"a: b\r\n"), (HEAD + b"content-length: 9\r\n\r\n", b"123"), (b"\r\n",)],
    ids=["nothing", "half a word", "half a head", "half a body", "an empty line"],
)
async def test_what_never_comes_whole_is_ended(port: int, parts: tuple[bytes, ...]) -> None:
    assert await told(port, *parts) == b""


async def test_a_head_without_an_end_is_refused(port: int) -> None:
    assert (await told(port, HEAD, b"a: ", *[b"x" * 16_384] * 5)).startswith(b"HTTP/1.1 431 ")


async def test_whole_requests_come_through(port: int) -> None:
    once = HEAD + b"content-length: 4\r\n\r\n"
    assert (await told(port, once, b"12", b"34")).endswith(b"\r\n\r\n4")
    assert (await told(port, once + b"1234" + once + b"1234")).count(b"HTTP/1.1 200") >= 1
    slow = [once, *(b"%d" % number for number in range(4))]
    assert (await told(port, *slow)).endswith(b"\r\n\r\n4")
    big = HEAD + b"content-length: 300000\r\n\r\n"
    assert (await told(port, big + b"x" * 300_000)).endswith(b"300000")
