"""Until api/batches waits for the disk by itself."""

from __future__ import annotations

from redis import Redis


class Disk:
    """The disk of the queue's server."""

    def __init__(self, redis: Redis, redis_timeout_s: float) -> None:
        self._redis, self._wait_ms = redis, int(redis_timeout_s * 800)

    def wait(self, key: str) -> None:
        """Wait until all that was written so far is on disk."""
        self._redis.hincrby(key, "synced", 1)
        self._redis.waitaof(1, 0, self._wait_ms)
