"""Outages of the queue, the store or a resolver: errors for callers, and bounded threads for blocking calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
from anyio import CapacityLimiter
from redis.exceptions import RedisError

from serinette.errors import QueueUnavailable, Unavailable


@contextmanager
def queue_errors(advice: str = "try again") -> Iterator[None]:
    """Raise errors of Redis's client as QueueUnavailable, with advice for the caller."""
    try:
        yield
    except RedisError as error:
        raise QueueUnavailable(f"the queue does not answer; {advice}") from error


_Answer = TypeVar("_Answer")

# Most requests that wait for a thread: with more, the server behind them does not answer.
_MAX_WAITING = 64


class Threads:
    """A bounded number of threads. `refuse` makes the error that is raised when too many requests wait for one."""

    def __init__(self, count: int, refuse: Callable[[], Unavailable]) -> None:
        self._limiter = CapacityLimiter(count)
        self._refuse = refuse

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return self._limiter.statistics().tasks_waiting

    async def run(self, act: Callable[[], _Answer]) -> _Answer:
        """The result of `act`, run in a thread. Raises its errors, or that of `refuse`."""
        if self.waiting >= _MAX_WAITING:
            raise self._refuse()
        return await anyio.to_thread.run_sync(act, limiter=self._limiter)
