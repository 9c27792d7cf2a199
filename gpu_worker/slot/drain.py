"""When this slot must leave; a Redis that waits out every outage until then, and a store that waits for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq.exceptions import StopRequested

from serinette.errors import StoreUnavailable
from serinette.housekeeping import HousekeepingRedis
from serinette.settings import SharedSettings, connect_redis
from serinette.store import Store

log = logging.getLogger(__name__)

# A signal that a process group and its parent both pass on arrives twice at once, and means the same.
_SAME_SIGNAL_S = 1.0
# Time to report to Redis that a job is given back, should it be away just then.
_LAST_REPORT_S = 10.0
_LONGEST_PAUSE_S = 1.0
# Beyond this the pause has long reached its bound, and 2 ** failures leaves the range of a float after 17 minutes.
_LAST_DOUBLING = 10
# Between two questions to a store that is away; and between two looks at the cancel flag and the deadline meanwhile.
_FIRST_STORE_PAUSE_S, _LONGEST_STORE_PAUSE_S = 0.2, 5.0
_CHECK_EVERY_S = 0.2

Answer = TypeVar("Answer")


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


class RetryingStore:
    """Asks again while the store does not answer: to generate again costs more than to wait.

    Every method raises StoreUnavailable once `patience_s` passed, and whatever `check` raises.
    """

    def __init__(self, store: Store, patience_s: float, check: Callable[[], None]) -> None:
        self._store = store
        self._patience_s = patience_s
        self._check = check

    def impatient(self) -> RetryingStore:
        """The same store, asked once."""
        return RetryingStore(self._store, 0, self._check)

    def get(self, key: str) -> bytes:
        """Read a small object. Raises NotFound."""
        return self._ask(lambda: self._store.get(key))

    def download(self, key: str, path: Path, max_bytes: int) -> None:
        """Copy an object to a file. Raises NotFound, or TooLarge beyond `max_bytes`."""
        self._ask(lambda: self._store.download(key, path, max_bytes))

    def put(self, key: str, data: bytes | Path, content_type: str | None = None) -> None:
        """Write an object."""
        self._ask(lambda: self._store.put(key, data, content_type))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one. False may also mean that an earlier try of this very call wrote it."""
        return self._ask(lambda: self._store.put_if_absent(key, data))

    def delete(self, key: str) -> None:
        """Erase an object that nothing refers to, or leave it to retention where the store is away."""
        try:
            self._store.delete(key)
        except StoreUnavailable as error:
            log.warning("%s stays until retention erases it: %s", key, error)

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        until_s = time.monotonic() + self._patience_s
        pause_s = _FIRST_STORE_PAUSE_S
        while True:
            try:
                return question()
            except StoreUnavailable as error:
                if time.monotonic() + pause_s > until_s:
                    raise
                log.warning("the store is away, asking again in %g s: %s", pause_s, error)
            again_s = time.monotonic() + pause_s
            while time.monotonic() < again_s:
                self._check()
                time.sleep(min(_CHECK_EVERY_S, pause_s))
            pause_s = min(2 * pause_s, _LONGEST_STORE_PAUSE_S)
