"""Finds the jobs that no worker began in time, also while no worker is up."""

from __future__ import annotations

from typing import Any

from redis import Redis

from api.maintenance.mend import Patient
from serinette.job import now
from serinette.names import Keys

# Looked at in one round; the rest of them in the next.
_BATCH = 500


class Deadlines:
    """The index of start deadlines. The mender decides, on an exact reading; a claim that came first has won."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    def find(self) -> list[Patient]:
        """Jobs whose deadline has passed and that nobody ever began; those that somebody did leave the index."""
        due: Any = self._redis.zrange(
            self._keys.deadlines, "-inf", now().timestamp(), byscore=True, offset=0, num=_BATCH
        )
        ids = [job_id.decode() for job_id in due]
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(self._keys.ledger(job_id), ["tenant", "attempts", "outcome"])
            answers = pipe.execute()
        settled = [job_id for job_id, (tenant, *over) in zip(ids, answers, strict=True) if tenant is None or any(over)]
        if settled:
            self._redis.zrem(self._keys.deadlines, *settled)
        return [Patient(job_id) for job_id in ids if job_id not in settled]
