"""A Redis connection that waits out an outage, so that nothing above it has to."""

from __future__ import annotations

from collections.abc import Callable

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq.exceptions import StopRequested

from serinette.settings import SharedSettings, connect_redis

_LONGEST_PAUSE_S = 1.0
# Beyond this the pause has long reached its bound, and 2 ** failures leaves the range of a float after 17 minutes.
_LAST_DOUBLING = 10


class Patience(ExponentialBackoff):
    """Pauses between tries, for ever, until the slot must leave: redis-py asks here before each further try."""

    def __init__(self, must_leave: Callable[[], bool]) -> None:
        super().__init__(cap=_LONGEST_PAUSE_S, base=0.05)
        self._must_leave = must_leave

    def compute(self, failures: int) -> float:
        """Seconds to the next try.

        Raises:
            StopRequested: the slot must leave; RQ's loop ends on it.
        """
        if self._must_leave():
            raise StopRequested
        return float(super().compute(min(failures, _LAST_DOUBLING)))


def connect_patiently(settings: SharedSettings, must_leave: Callable[[], bool]) -> Redis:
    """A client whose every command waits for Redis to come back.

    RQ's worker ends on a Redis that is away for seconds, wherever that hits it, and takes a finished song with it. Here
    the model stays warm and the song is recorded when Redis is back.
    """
    redis = connect_redis(settings)
    redis.set_retry(Retry(Patience(must_leave), retries=-1))
    return redis
