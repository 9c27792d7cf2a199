"""One replica at work at a time."""

from __future__ import annotations

from redis import Redis
from redis.exceptions import LockError


class Lease:
    """A short lock in Redis that its holder keeps renewing.

    It saves double work and no more: every write of maintenance is safe beside another replica that believes it
    holds the lease.
    """

    def __init__(self, redis: Redis, key: str, lease_s: float) -> None:
        self._lock = redis.lock(key, timeout=lease_s, blocking=False, thread_local=False)

    def hold(self) -> bool:
        """Take it or renew it; False while another replica has it."""
        try:
            return bool(self._lock.reacquire())
        except LockError:  # never held, or lost to expiry or to a restart of Redis
            return bool(self._lock.acquire())

    def release(self) -> None:
        """Let the next replica begin at once."""
        try:
            self._lock.release()
        except LockError:
            return
