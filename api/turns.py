"""Bounded concurrency that tenants share in turns, so that one tenant's requests never hold up another's."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

import anyio
from anyio import CapacityLimiter
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serinette.errors import SerinetteError

_Answer = TypeVar("_Answer")

# Most requests of one tenant that wait for a turn: with more, what they wait for does not answer.
_MOST_WAITING = 64
# What others do on the event loop meanwhile counts as a turn's own: a busy hour must not put a tenant off for long.
_LONGEST_REST_S = 5.0


class Turns:
    """At most `total` holders at once, and at most `each` of one tenant. Waiting tenants take turns, so that a tenant
    with one request waits for one turn, however many requests others have waiting.

    `refuse` makes the error for a tenant's request beyond those that may wait. `rest`: so many times the length of a
    turn passes before its tenant may have another in its place, so that one tenant has `each / (1 + rest)` of the
    event loop at the most; others may begin at once. Used on one event loop only.
    """

    def __init__(
        self,
        total: int,
        each: int,
        refuse: Callable[[], SerinetteError],
        most_waiting: int = _MOST_WAITING,
        rest: float = 0.0,
    ) -> None:
        self._free = total
        self._each = each
        self._rest = rest
        self._refuse = refuse
        self._most_waiting = most_waiting
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # in the order of the turns

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(map(len, self._waiting.values()))

    def held(self, tenant: str) -> int:
        """Turns that a tenant holds now."""
        return self._held.get(tenant, 0)

    def has_turn(self, tenant: str) -> bool:
        """Whether a turn of this tenant would begin at once."""
        return self._free > 0 and self.held(tenant) < self._each

    @asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a turn of this tenant, and hold it. Raises the error of `refuse`."""
        await self.take(tenant)
        began_s = time.thread_time()  # not the time that it waited for a Redis which does not answer
        try:
            yield
        finally:
            self.give_back(tenant, time.thread_time() - began_s)

    async def take(self, tenant: str) -> None:
        """Wait for a turn of this tenant, which ends with `give_back`. Raises the error of `refuse`."""
        if self.has_turn(tenant):  # whoever waits has all that one tenant may have
            self._take(tenant)
        else:
            await self._wait(tenant)

    async def _wait(self, tenant: str) -> None:
        if len(self._waiting.get(tenant, ())) >= self._most_waiting:
            raise self._refuse()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given while the request was being canceled
                self.give_back(tenant)
            else:
                self._forget(tenant, turn)
            raise

    def _take(self, tenant: str) -> None:
        self._free -= 1
        self._held[tenant] = self.held(tenant) + 1

    def give_back(self, tenant: str, took_s: float = 0.0) -> None:
        """A turn of this tenant ends; the next begins. `took_s`: how long it took what is shared."""
        self._free += 1
        if self._rest and took_s:
            rest_s = min(self._rest * took_s, _LONGEST_REST_S)
            asyncio.get_running_loop().call_later(rest_s, self._end, tenant)
            self._begin_next()
        else:
            self._end(tenant)

    def _end(self, tenant: str) -> None:
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        self._begin_next()

    def _begin_next(self) -> None:
        if not self._free:
            return
        for name in [name for name in self._waiting if self.held(name) < self._each]:
            queue = self._waiting.pop(name)
            turn = queue.popleft()
            while turn.done() and queue:  # it is being canceled
                turn = queue.popleft()
            if queue:
                self._waiting[name] = queue  # behind the others
            if not turn.done():
                self._take(name)
                turn.set_result(None)
                return

    def _forget(self, tenant: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(tenant, deque())
        if turn in queue:
            queue.remove(turn)
        if not queue:
            self._waiting.pop(tenant, None)


class HeldResponse(Response):
    """A response that holds a turn until it is sent. Raises the turn's refusal before anything is sent."""

    def __init__(self, response: Response, turn: AbstractAsyncContextManager[object]) -> None:
        super().__init__()
        self._response = response
        self._turn = turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        async with self._turn:
            await self._response(scope, receive, send)


class Threads:
    """Threads for blocking calls, in turns of their tenants."""

    def __init__(
        self, total: int, each: int, refuse: Callable[[], SerinetteError], most_waiting: int = _MOST_WAITING
    ) -> None:
        self.turns = Turns(total, each, refuse, most_waiting)
        self._limiter = CapacityLimiter(total)

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return self.turns.waiting

    async def run(self, tenant: str, act: Callable[[], _Answer]) -> _Answer:
        """The result of `act`, run in a thread. Raises its errors, or that of `refuse`."""
        async with self.turns.of(tenant):
            return await anyio.to_thread.run_sync(act, limiter=self._limiter)
