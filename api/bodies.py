"""Bodies of requests. Long ones come to the disk first, bounded per tenant, and are then read in turns of their
tenants: whoever sends slowly holds a file, and no turn.

How slowly a body may come is bounded for all of them in api/http_protocol.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from anyio import CancelScope, CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth.keyring import Caller
from api.forms import TEXT_BYTES
from api.lean_route import replayed
from api.middleware import CALLER, is_public
from api.outages import machine_error
from api.problems import answer
from api.turns import Turns
from serinette.errors import Limited, RequestError, SerinetteError, TooLarge, Unavailable
from serinette.names import DEFAULT_TENANT

_T = TypeVar("_T")
_Given = TypeVarTuple("_Given")

# Overhead of multipart around a file.
_ENVELOPE_BYTES: Final = 65_536
# Bodies longer than this are long.
LONG_BYTES: Final = 65_536
# Long bodies of one tenant that are under way.
BODIES_OF_TENANT: Final = 64
# The disk holds so many of the longest body, of one tenant at most half.
_LONGEST_ON_DISK: Final = 8
# Threads that write and read them, a piece at a time.
_DISK_THREADS: Final = 4
_PIECE_BYTES: Final = 262_144

# How many long bodies are read at once, of one tenant and of all.
_READ_OF_TENANT: Final = 2
_READ: Final = 16
# Times of parsing between two of a tenant's: with two at once it has a twenty-fifth of the event loop at the most.
_REST: Final = 49.0
# Bodies with audio in base64, which take several times their size in memory; of one tenant at most half.
_IN_MEMORY: Final = 4

_TOO_MANY = partial(
    Limited,
    f"{BODIES_OF_TENANT} uploads and long bodies of one tenant may be under way at once; wait for some to end",
    retry_after_s=5,
)
_NO_ROOM = partial(
    Limited,
    "this gateway's disk has no room for more of this tenant's uploads and long bodies; wait for some to end",
    retry_after_s=5,
)
_ADVICE = "send less"
_CLOSE = {"Connection": "close"}
_BUSY = partial(Unavailable, "too many long bodies of this tenant wait to be read; try again")


class Body:
    """A body in a file of its own. `receipt` is canceled when others need its room before it is whole."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.file = tempfile.NamedTemporaryFile(prefix="serinette-body-")  # noqa: SIM115  # Bodies.end closes it
        self.size_bytes = self.held_bytes = 0
        self.receipt = CancelScope()
        self.is_whole = False
        self._digest = hashlib.sha256()

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file.name)

    @property
    def sha256(self) -> str:
        """Of all that came, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, piece: bytes) -> None:
        """Append; blocking."""
        self._digest.update(piece)
        self.file.write(piece)

    def rewind(self) -> None:
        """All of it can now be read; blocking."""
        self.file.flush()
        self.file.seek(0)


class Bodies:
    """Files of bodies that are under way, those of all tenants within `longest_bytes` times eight. When they need more,
    the tenant that holds the most loses its newest that is not whole yet: nobody's slow ones keep the others' out.
    """

    def __init__(self, longest_bytes: int) -> None:
        self._most_bytes = longest_bytes * _LONGEST_ON_DISK
        self._open: dict[str, list[Body]] = {}  # of each tenant the oldest first
        self._held: Counter[str] = Counter()  # bytes of each tenant
        self._threads = CapacityLimiter(_DISK_THREADS)

    def held(self, tenant: str) -> int:
        """Bodies of a tenant that are under way."""
        return len(self._open.get(tenant, ()))

    @asynccontextmanager
    async def received(
        self, tenant: str, pieces: AsyncIterator[bytes], most_bytes: int, advice: str = _ADVICE
    ) -> AsyncIterator[Body]:
        """The whole body, until the end of the context.

        Raises:
            TooLarge: it is longer than `most_bytes`.
            Limited: too many of this tenant's are under way, or others need their room.
        """
        if self.held(tenant) >= BODIES_OF_TENANT:
            raise _TOO_MANY()
        body = Body(tenant)
        self._open.setdefault(tenant, []).append(body)
        try:
            await self._receive(body, pieces, most_bytes, advice)
            yield body
        finally:
            await self.end(body)

    async def _receive(self, body: Body, pieces: AsyncIterator[bytes], most_bytes: int, advice: str) -> None:
        with body.receipt:
            async for piece in pieces:
                body.size_bytes += len(piece)
                if body.size_bytes > most_bytes:
                    raise too_large(most_bytes, advice)
                self._hold(body, len(piece))
                await self._in_thread(body.write, piece)
            await self._in_thread(body.rewind)
            body.is_whole = True
        if not body.is_whole:
            raise _NO_ROOM()

    async def read(self, body: Body) -> bytes:
        """The next piece; nothing behind the last."""
        return await self._in_thread(body.file.read, _PIECE_BYTES)

    async def pieces(self, body: Body) -> AsyncIterator[bytes]:
        """All of them."""
        while piece := await self.read(body):
            yield piece

    async def end(self, body: Body) -> None:
        """Remove the file. Idempotent."""
        bodies = self._open.get(body.tenant, [])
        if body not in bodies:
            return
        bodies.remove(body)
        if not bodies:
            del self._open[body.tenant]
        try:
            with CancelScope(shield=True):
                await self._in_thread(body.file.close)
        finally:
            self._release(body)

    async def _in_thread(self, act: Callable[[*_Given], _T], *given: *_Given) -> _T:
        return await to_thread.run_sync(act, *given, limiter=self._threads)

    def _hold(self, body: Body, more_bytes: int) -> None:
        """Count bytes that will be written, for which others may have to go. Raises Limited."""
        mine_bytes = self._held[body.tenant] + more_bytes
        if mine_bytes > self._most_bytes / 2:
            raise _NO_ROOM()
        while self._held.total() + more_bytes > self._most_bytes:
            goes = self._newest_of_those_that_hold_more(mine_bytes)
            if goes is None:
                raise _NO_ROOM()
            self._release(goes)
            goes.receipt.cancel()
        body.held_bytes += more_bytes
        self._held[body.tenant] += more_bytes

    def _newest_of_those_that_hold_more(self, than_bytes: int) -> Body | None:
        for tenant, held_bytes in self._held.most_common():
            if held_bytes <= than_bytes:
                return None
            for body in reversed(self._open.get(tenant, ())):
                if body.held_bytes and not body.is_whole:
                    return body
        return None

    def _release(self, body: Body) -> None:
        self._held[body.tenant] -= body.held_bytes
        body.held_bytes = 0
        if not self._held[body.tenant]:
            del self._held[body.tenant]


def too_large(most_bytes: int, advice: str = _ADVICE) -> TooLarge:
    """A body that is longer than it may be."""
    return TooLarge(f"the body is longer than the {most_bytes} bytes allowed here; {advice}")


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How long bodies may be. `others`: on paths that take files, by prefix; on all other paths `body_bytes`.

    On `text_paths` the whole body may be text, which is held in memory; on `streamed` paths (prefixes) routes receive
    to the disk themselves what is no form.
    """

    body_bytes: int
    others: Mapping[str, int] = field(default_factory=dict)
    text_paths: Collection[str] = ()
    streamed: tuple[str, ...] = ()

    def of(self, path: str) -> int:
        """Bytes on this path."""
        for prefix, most_bytes in self.others.items():
            if path.startswith(prefix):
                return most_bytes + _ENVELOPE_BYTES
        return self.body_bytes

    def receives(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        """Whether this body is received before its route begins: it is declared as long, or without a length."""
        declared = headers.get(b"content-length")
        if int(declared) <= LONG_BYTES if declared else b"transfer-encoding" not in headers:
            return False
        is_form = headers.get(b"content-type", b"").lower().startswith(b"multipart/")
        return is_form or not path.startswith(self.streamed)


class BodyBounds:
    """Refuses bodies above the limit of their path with 413. Long ones are received whole, and then read in turns of
    their tenants: reading and parsing one takes milliseconds of the event loop, which all tenants share.
    """

    def __init__(self, app: ASGIApp, bodies: Bodies, limits: BodyLimits) -> None:
        self._app = app
        self._bodies = bodies
        self._limits = limits
        self._turns = Turns(_READ, _READ_OF_TENANT, _BUSY, rest=_REST)
        self._in_memory = Turns(_IN_MEMORY, _IN_MEMORY // 2, _BUSY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its whole body if that is long."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path, headers = scope["path"], dict(scope["headers"])
        limit = self._limits.of(path)
        if path in self._limits.text_paths:
            scope[TEXT_BYTES] = limit
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 20:
            malformed = RequestError("Content-Length: not a number", field="Content-Length")
            return await answer(scope, malformed, headers=_CLOSE)(scope, receive, send)
        if int(declared) > limit:  # of a shorter one the server reads no more
            return await answer(scope, too_large(limit))(scope, receive, send)
        if is_public(path) or not self._limits.receives(path, headers):  # strangers take no room of a tenant's
            return await self._app(scope, receive, send)
        return await self._receive(scope, receive, send, limit)

    async def _receive(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        caller: Caller | None = scope.get(CALLER)
        tenant = caller.tenant if caller else DEFAULT_TENANT
        async with AsyncExitStack() as stack, AsyncExitStack() as memory:
            try:
                pieces = _pieces(receive)
                start, is_whole = await _start(pieces, limit)
                if not is_whole:
                    whole = self._bodies.received(tenant, _chained(start, pieces), limit)
                    body = await stack.enter_async_context(whole)
                    if scope["path"] in self._limits.text_paths:
                        await memory.enter_async_context(self._in_memory.of(tenant))
            except ClientDisconnect:
                return None
            except (SerinetteError, OSError) as error:
                refusal = error if isinstance(error, SerinetteError) else machine_error(error)
                if refusal is None:
                    raise
                return await answer(scope, refusal, headers=_CLOSE)(scope, receive, send)
            if is_whole:
                return await self._app(scope, replayed(start, receive), send)

            async def answers(message: Message) -> None:
                await memory.aclose()  # of a stream only its answer is left
                await send(message)

            return await self._read(scope, receive, answers, body)

    async def _read(self, scope: Scope, receive: Receive, send: Send, body: Body) -> None:
        """Pass the request on. Its turn begins as its route begins to read, and ends when the body is parsed: a route
        that waits for something else and reads nothing holds none.
        """
        holds, left_bytes, read_s = False, body.size_bytes, 0.0

        def end() -> None:
            nonlocal holds
            if holds:
                holds = False
                self._turns.give_back(body.tenant, time.thread_time() - read_s if read_s else 0.0)

        async def again() -> Message:
            nonlocal holds, left_bytes, read_s
            if not left_bytes:
                return await receive()
            if left_bytes == body.size_bytes:
                await self._turns.take(body.tenant)
                holds = True
            piece = await self._bodies.read(body)
            left_bytes -= len(piece)
            if not left_bytes:
                await self._bodies.end(body)
                read_s = time.thread_time()
                asyncio.get_running_loop().call_soon(end)  # the body is parsed before the loop comes to that
            return {"type": "http.request", "body": piece, "more_body": left_bytes > 0}

        try:
            return await self._app(scope, again, send)
        finally:
            end()


async def _pieces(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def _start(pieces: AsyncIterator[bytes], limit: int) -> tuple[bytes, bool]:
    """A body until it is a long one, and whether that is all of it. Raises TooLarge."""
    start = bytearray()
    async for piece in pieces:
        start += piece
        if len(start) > limit:
            raise too_large(limit)
        if len(start) > LONG_BYTES:
            return bytes(start), False
    return bytes(start), True


async def _chained(start: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    async for piece in pieces:
        yield piece
