"""`durability: fsync`: a submit is answered once the queue's server has it on its disk."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from serinette.errors import QueueUnavailable

# Of the longest wait for one answer of Redis: what is left is for the answer's way.
_SHARE = 0.8


class Disk:
    """The disk of the queue's server, as far as a client can ask for it."""

    def __init__(self, redis: Redis, redis_timeout_s: float) -> None:
        self._redis = redis
        self._wait_ms = int(redis_timeout_s * 1000 * _SHARE)

    def require(self) -> None:
        """See, before anything is written, that there is an append-only file to wait for.

        Raises:
            QueueUnavailable: there is none.
        """
        told: Any = self._redis.info("persistence")
        if not int(told.get("aof_enabled", 0)):
            raise QueueUnavailable(
                "this gateway promises that accepted jobs are on disk (durability: fsync), and the queue's server "
                "keeps no append-only file: nothing was accepted; its operator must set appendonly yes there, or "
                "durability: process here"
            )

    def wait(self, ledger_key: str) -> None:
        """Wait until all that was written so far is on disk.

        Raises:
            QueueUnavailable: it is not within the time for one answer. What was written stays, and may be sung.
        """
        # WAITAOF waits for its own connection's writes, and the submit's came over others: the file is written in
        # order, so this one stands for them.
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hincrby(ledger_key, "synced", 1)
            pipe.waitaof(1, 0, self._wait_ms)
            try:
                local, _ = pipe.execute()[1]
            except ResponseError as error:
                raise _not_on_disk(str(error)) from error
        if int(local) < 1:
            raise _not_on_disk(f"not within {self._wait_ms} ms")


def _not_on_disk(why: str) -> QueueUnavailable:
    return QueueUnavailable(
        f"the queue's server did not say that the job is on its disk ({why}); it may be generated all the same: send "
        "the submit again with its Idempotency-Key, or look for the job in the list"
    )
