"""What the clients know: every 202 they got, and how its job ended. A run is judged by it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.chaos.plan import Order

ENDED = frozenset({"succeeded", "failed", "canceled"})


@dataclass(slots=True)
class Promise:
    """One accepted job. Times are Unix seconds."""

    order: Order
    job_id: str
    accepted_at: float
    forgotten: list[float] = field(default_factory=list)  # when the 202 came that the gateway did not know later
    ends: list[tuple[str, float]] = field(default_factory=list)  # each end that was reported, as it changed
    terminal_events: list[tuple[str, float]] = field(default_factory=list)  # that came by Server-Sent Events, and when
    last_event_id: str = ""

    @property
    def over(self) -> bool:
        return bool(self.ends)


class ClientLedger:
    """All promises of a run."""

    def __init__(self) -> None:
        self.promises: dict[int, Promise] = {}
        self.changed_at_s = time.monotonic()  # when the clients last made progress
        self._grown = asyncio.Condition()

    async def accept(self, order: Order, job_id: str) -> Promise:
        """A 202 (or 200) came for an order."""
        self.changed_at_s = time.monotonic()
        promise = self.promises.setdefault(order.number, Promise(order, job_id, time.time()))
        async with self._grown:
            self._grown.notify_all()
        return promise

    async def until_accepted(self, count: int) -> None:
        """Wait until so many jobs were accepted."""
        async with self._grown:
            await self._grown.wait_for(lambda: self.accepted >= count)

    def accept_again(self, promise: Promise) -> None:
        """The gateway did not know the job any more; it was submitted again."""
        self.changed_at_s = time.monotonic()
        promise.forgotten.append(promise.accepted_at)
        promise.accepted_at = time.time()

    def end(self, promise: Promise, status: str) -> None:
        """A job's end was reported; a repetition of the same adds nothing."""
        self.changed_at_s = time.monotonic()
        if not promise.ends or promise.ends[-1][0] != status:
            promise.ends.append((status, time.time()))

    def __iter__(self) -> Iterator[Promise]:
        return iter(self.promises.values())

    @property
    def accepted(self) -> int:
        return len(self.promises)

    @property
    def unfinished(self) -> int:
        return sum(not promise.over for promise in self)
