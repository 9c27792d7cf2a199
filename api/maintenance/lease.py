"""One replica at work at a time."""

from __future__ import annotations

import time

from redis import Redis
from redis.exceptions import LockError


class Lease:
    """A short lock in Redis that its holder keeps renewing.

    It saves double work and no more: every write of maintenance is safe beside another replica that believes it
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
