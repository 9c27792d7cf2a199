"""A Redis that does not answer, told to whoever asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import RedisError

from serinette.errors import QueueUnavailable


@contextmanager
def answering(advice: str = "try again") -> Iterator[None]:
    """Tell what Redis's client raises in here as QueueUnavailable, with what to do."""
    try:
        yield
    except RedisError as error:
        raise QueueUnavailable(f"the queue does not answer; {advice}") from error
