"""Finds the jobs that wait in lanes of pools that are no more."""

from __future__ import annotations

from typing import Any

from redis import Redis

from api.maintenance.homes import Homes
from api.maintenance.lanes import lanes
from api.maintenance.mend import Patient
from api.maintenance.vigil import Vigil
from serinette.names import Keys
from serinette.presence import present

# Dealt with in one round; the rest of them in the next.
_BATCH = 200


class Homeless:
    """Tells which jobs need another home.

    While a new chart is rolled out, gateways may know a pool that this process does not: only a pool that stays unknown
    for `patience_s`, with no worker up, is taken for removed.
    """

    def __init__(self, redis: Redis, keys: Keys, homes: Homes, patience_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._homes = homes
        self._vigil: Vigil[str] = Vigil(patience_s, step_s=max(patience_s / 4, 5.0))

    def find(self, at_s: float) -> list[Patient]:
        """Some of them, at a monotonic time; the rest when asked again."""
        foreign = {queue.name: queue for queue in lanes(self._redis) if self._homes.removed(_pool(queue.name))}
        up = {worker.pool for worker in present(self._redis, self._keys)} if foreign else set()
        ripe = self._vigil.look({name: None for name in foreign if _pool(name) not in up}, at_s)
        found: list[Patient] = []
        for name in ripe:
            ids: Any = self._redis.lrange(foreign[name].key, 0, _BATCH - len(found) - 1) if len(found) < _BATCH else []
            found += [Patient(job_id.decode(), name, homeless=True) for job_id in ids]
        return found


def _pool(lane: str) -> str:
    return lane.rpartition(".")[0]
