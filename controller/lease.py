"""What the controller does over and over: in every replica, or behind a lease by one of them at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event

from redis import Redis
from redis.exceptions import LockError, RedisError

from serinette.errors import StoreUnavailable

log = logging.getLogger(__name__)

_LONGEST_BACKOFF_S = 5.0


class Lease:
    """A short lock in Redis that its holder keeps renewing.

    It saves double work and no more: every write of the controller is safe beside another replica that believes it
    holds the lease.
    """

    def __init__(self, redis: Redis, key: str, lease_s: float) -> None:
        self.name = key.rpartition(":")[2]
        self._lock = redis.lock(key, timeout=lease_s, blocking=False, thread_local=False)
        self._lease_s = lease_s
        self._held_until_s = 0.0

    def hold(self) -> bool:
        """Take it or renew it; False while another replica has it."""
        asked_s = time.monotonic()
        try:
            held = bool(self._lock.reacquire())
        except LockError:  # never held, or lost to expiry or to a restart of Redis
            held = bool(self._lock.acquire())
        self._held_until_s = asked_s + self._lease_s if held else 0.0
        return held

    @property
    def held(self) -> bool:
        """Whether it is ours, as far as can be told without asking Redis."""
        return time.monotonic() < self._held_until_s

    def release(self) -> None:
        """Let the next replica begin at once."""
        self._held_until_s = 0.0
        try:
            self._lock.release()
        except LockError:
            return


class FailureLog:
    """One line when a part fails and one when it is well again, however often it is tried in between."""

    def __init__(self, log: logging.Logger, part: str) -> None:
        self._log = log
        self._part = part
        self._failing = False

    def note(self, error: Exception | None) -> None:
        """Take in how the last try went; None means well."""
        if error and not self._failing:
            self._log.warning("%s fails: %s", self._part, error)
        elif self._failing and not error:
            self._log.info("%s goes on", self._part)
        self._failing = error is not None


def keep(make_duty: Callable[[], Callable[[], object]], pause_s: float, stop: Event, lease: Lease | str) -> None:
    """Do a duty every `pause_s` until `stop`: while the lease is ours, or always under the name that is given instead.

    The duty is made anew after every failure.
    """
    name = lease if isinstance(lease, str) else lease.name
    failures = FailureLog(log, name)
    duty: Callable[[], object] | None = None
    wait_s = pause_s
    while not stop.wait(wait_s):
        try:
            if isinstance(lease, str) or lease.hold():
                duty = duty or make_duty()
                duty()
        except (RedisError, StoreUnavailable) as error:
            failures.note(error)
            duty, wait_s = None, min(2 * wait_s, max(_LONGEST_BACKOFF_S, pause_s))
        except Exception:
            log.exception("%s failed; starting over", name)
            duty, wait_s = None, max(_LONGEST_BACKOFF_S, pause_s)
        else:
            failures.note(None)
            wait_s = pause_s
