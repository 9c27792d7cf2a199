"""When this slot must leave, and a Redis connection that waits out every outage until then."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import FrameType

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq.exceptions import StopRequested

from serinette.housekeeping import HousekeepingRedis
from serinette.settings import SharedSettings, connect_redis

# A signal that a process group and its parent both pass on arrives twice at once, and means the same.
_SAME_SIGNAL_S = 1.0
# Time to report to Redis that a job is given back, should it be away just then.
_LAST_REPORT_S = 10.0
_LONGEST_PAUSE_S = 1.0
# Beyond this the pause has long reached its bound, and 2 ** failures leaves the range of a float after 17 minutes.
_LAST_DOUBLING = 10


class Drain:
    """Set by SIGTERM and SIGINT, asked everywhere else.

    The handler only takes the time: raised from there, RQ's StopRequested can land in the middle of a transaction
    (rq#2175).
    """

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s`: how long a job in hand may still run."""
        self._timeout_s = timeout_s
        self._requested_at_s: float | None = None
        self._over_at_s = float("inf")
        self.holding = False  # a job, from its claim to the record of its end

    def on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Leave when the job in hand is done; asked a second time, give it back at once."""
        at_s = time.monotonic()
        if self._requested_at_s is None:
            self._requested_at_s = at_s
            self._over_at_s = at_s + self._timeout_s
        elif at_s - self._requested_at_s > _SAME_SIGNAL_S:
            self._over_at_s = min(self._over_at_s, at_s)

    @property
    def requested(self) -> bool:
        """Take no more jobs."""
        return self._requested_at_s is not None

    @property
    def over(self) -> bool:
        """Give the job in hand back."""
        return time.monotonic() >= self._over_at_s

    @property
    def must_leave(self) -> bool:
        """Leave now, even if Redis was not reached."""
        expired = time.monotonic() >= self._over_at_s + _LAST_REPORT_S
        return self.requested and (expired or not self.holding)


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


def connect_patiently(settings: SharedSettings, drain: Drain) -> Redis:
    """A client whose every command waits for Redis to come back.

    RQ's worker ends on a Redis that is away for seconds, wherever that hits it, and takes a finished song with it. Here
    the model stays warm and the song is recorded when Redis is back.
    """
    redis = HousekeepingRedis(connection_pool=connect_redis(settings).connection_pool)
    redis.set_retry(Retry(Patience(lambda: drain.must_leave), retries=-1))
    return redis
