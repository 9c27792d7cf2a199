"""When the queue, the store or a resolver does not answer: a clear refusal, and threads within bounds."""

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
    """Tell what Redis's client raises in here as QueueUnavailable, with what to do."""
    try:
        yield
    except RedisError as error:
        raise QueueUnavailable(f"the queue does not answer; {advice}") from error


_Answer = TypeVar("_Answer")

# Requests that wait for one of the threads: beyond them nobody is answering.
_MAX_WAITING = 64


class Threads:
    """So many at most. `refuse` makes the error that is raised when too many requests wait for one."""

    def __init__(self, count: int, refuse: Callable[[], Unavailable]) -> None:
        self._limiter = CapacityLimiter(count)
        self._refuse = refuse

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return self._limiter.statistics().tasks_waiting

    async def run(self, act: Callable[[], _Answer]) -> _Answer:
        """What `act` answers. Raises what it does, or what `refuse` makes."""
        if self.waiting >= _MAX_WAITING:
            raise self._refuse()
        return await anyio.to_thread.run_sync(act, limiter=self._limiter)
