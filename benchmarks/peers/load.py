"""Requests over keep-alive connections as fast as they are answered, from one thread: the load, and a single client."""

from __future__ import annotations

import asyncio
import http.client
import json
from dataclasses import dataclass
from typing import Any, cast

import uvloop

CONNECTIONS = 8
ANSWER_S = 30.0  # longest wait for an answer


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, and what each answer to it must be: its status, and `word` in its body."""

    method: str
    path: str
    status: int
    word: str
    body: object = None
    key: str | None = None

    def wire(self) -> bytes:
        """The request as it goes over the wire."""
        content = b"" if self.body is None else json.dumps(self.body).encode()
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(content)}"]
        lines += ["Content-Type: application/json"] if content else []
        lines += [f"Authorization: Bearer {self.key}"] if self.key else []
        return "\r\n".join([*lines, "", ""]).encode() + content


class _Connection(asyncio.Protocol):
    """Sends a request again as soon as it is answered, until `until` (the loop's clock) is past."""

    def __init__(self, request: Request, until: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._wire, self._until, self._buffer = request.wire(), until, b""
        self._status, self._word = f"HTTP/1.1 {request.status} ".encode(), request.word.encode()
        self.answers, self.ended = 0, self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.write(self._wire)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length):
            return
        if not head.startswith(self._status) or self._word not in body:
            self._end(RuntimeError(f"{self._wire!r} was answered {self._buffer[:2000]!r}"))
            return
        self.answers += 1
        self._buffer = b""
        if self._loop.time() < self._until:
            self._transport.write(self._wire)
        else:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or ConnectionError("the server closed a connection that was to be kept alive"))

    def _end(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(error) if error else self.ended.set_result(None)
            self._transport.close()


async def _load(port: int, request: Request, seconds: float) -> tuple[int, float]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    opened = [
        loop.create_connection(lambda: _Connection(request, began + seconds), "127.0.0.1", port)
        for _ in range(CONNECTIONS)
    ]
    async with asyncio.timeout(seconds + ANSWER_S):
        connections = [connection for _, connection in await asyncio.gather(*opened)]
        await asyncio.gather(*(connection.ended for connection in connections))
    return sum(connection.answers for connection in connections), loop.time() - began


def load(port: int, request: Request, seconds: float) -> tuple[int, float]:
    """Answers over CONNECTIONS connections, and the seconds that they took.

    Raises:
        RuntimeError: an answer was not the expected one.
        OSError: the server closed a connection, or did not answer within ANSWER_S.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_load(port, request, seconds))


class Client:
    """One client on one keep-alive connection."""

    def __init__(self, port: int, key: str | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The answer's JSON object; any status but 2xx is a RuntimeError."""
        content = None if body is None else json.dumps(body).encode()
        self._connection.request(method, path, content, self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{method} {path} was answered {answer.status} {text.decode()[:2000]}")
        reported: dict[str, Any] = json.loads(text)
        return reported

    def close(self) -> None:
        """End the connection; the next request opens another. A gateway ends one that is idle for a minute itself."""
        self._connection.close()
