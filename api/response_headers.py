"""What every answer has: a request id, `nosniff`, and a Location that leads back through the proxies; long JSON is
compressed.
"""

from __future__ import annotations

import gzip
import os
import re

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.request_checks import prefix_of

# Set in the scope: the id of the request, for log lines and for errors.
REQUEST_ID = "serinette.request_id"
HEADER = b"x-request-id"
# A status of a job and most others are shorter: compressing them would cost more than it saves.
LEAST_BYTES = 8_192
# Longer ones are compressed in a thread.
_IN_A_THREAD_BYTES = 65_536
_LEVEL = 4
_GZIP = re.compile(r"(?:^|[\s,])(?:gzip|x-gzip)\s*(?:;\s*q\s*=\s*([0-9.]*))?\s*(?:,|$)", re.IGNORECASE)
_SENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_NOSNIFF = (b"x-content-type-options", b"nosniff")


def new_request_id() -> str:
    """For a request that brings none."""
    return os.urandom(8).hex()


def accepts_gzip(header: str) -> bool:
    """Whether `Accept-Encoding` takes gzip: it is named, and not with a weight of 0 (RFC 9110, 12.5.3)."""
    named = _GZIP.search(header)
    return named is not None and (named[1] is None or bool(named[1].strip("0.")))


class ResponseHeaders:
    """Outermost, so that refusals have them, too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] not in {"http", "websocket"}:
            return await self._app(scope, receive, send)
        request_id, takes_gzip = b"", False
        for name, value in scope["headers"]:
            if name == HEADER and _SENT_ID.fullmatch(value):
                request_id = value
            elif name == b"accept-encoding":
                takes_gzip = accepts_gzip(value.decode("latin-1"))
        request_id = request_id or new_request_id().encode()
        scope[REQUEST_ID] = request_id.decode()
        start: Message | None = None  # held until its body is compressed

        async def completed(message: Message) -> None:
            nonlocal start
            kind = message["type"]
            if kind in {"http.response.start", "websocket.http.response.start"}:
                headers = _completed(scope, message, request_id)
                message = {**message, "headers": headers}
                if _is_long_json(headers):
                    headers.append((b"vary", b"Accept-Encoding"))
                    if takes_gzip:
                        start = message
                        return
            elif start is not None:
                held, start = start, None
                await send_compressed(held, message, send)
                return
            await send(message)

        return await self._app(scope, receive, completed)


def _completed(scope: Scope, message: Message, request_id: bytes) -> list[tuple[bytes, bytes]]:
    headers = [(name, value) for name, value in message.get("headers", ()) if name != _NOSNIFF[0]]
    if message["status"] < 400 and message["status"] > 200:
        headers = [(name, _moved(scope, value) if name == b"location" else value) for name, value in headers]
    headers += ((HEADER, request_id), _NOSNIFF)
    return headers


def _moved(scope: Scope, location: bytes) -> bytes:
    """A Location of ours, relative to the host (RFC 9110, 10.2.2) and below the proxy's prefix; others as they are."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    here = scope["scheme"].encode() + b"://" + host  # as the router's own redirects have it
    if host and location.startswith(here + b"/"):
        location = location.removeprefix(here)
    if location.startswith(b"/") and not location.startswith(b"//"):
        return prefix_of(scope).encode() + location
    return location


def _is_long_json(headers: list[tuple[bytes, bytes]]) -> bool:
    found = dict(headers)
    length = found.get(b"content-length", b"")
    return (
        length.isdigit()
        and int(length) >= LEAST_BYTES
        and b"json" in found.get(b"content-type", b"")
        and b"content-encoding" not in found
        and b"content-range" not in found
        and b"etag" not in found
    )


async def send_compressed(start: Message, body: Message, send: Send) -> None:
    """Send an answer whose whole body came with its first message; any other goes out as it is."""
    if body.get("more_body") or body["type"] != "http.response.body":
        await send(start)
        await send(body)
        return
    plain = body.get("body", b"")
    if len(plain) > _IN_A_THREAD_BYTES:
        packed = await anyio.to_thread.run_sync(gzip.compress, plain, _LEVEL)
    else:
        packed = gzip.compress(plain, _LEVEL)
    headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
    headers += ((b"content-length", str(len(packed)).encode()), (b"content-encoding", b"gzip"))
    await send({**start, "headers": headers})
    await send({**body, "body": packed})
