"""Finds the jobs whose worker died: the heartbeat of their execution stands still."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from redis import Redis
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE
from rq.registry import StartedJobRegistry

from api.maintenance.lanes import lanes
from api.maintenance.mend import Patient
from api.maintenance.vigil import Vigil
from serinette.container import CONTAINERS_POOL
from serinette.names import Keys
from serinette.presence import dead_slots


class Reaper:
    """Tells which executions have been silent for `heartbeat_ttl_s` while we looked on.

    A heartbeat is an execution's score in RQ's started registry, pushed ahead every few seconds. That it lies in the
    past would not do: the clock is another machine's, and after an outage of Redis, or of ours, it does so for every
    worker. So a worker is lost when its score was seen to stand still for a whole life. Or when its supervisor, which
    saw it die, says so: then there is nothing to wait for.
    """

    def __init__(self, redis: Redis, keys: Keys, heartbeat_ttl_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._vigil: Vigil[tuple[str, str]] = Vigil(patience_s=heartbeat_ttl_s, step_s=heartbeat_ttl_s / 4)

    def find(self, at_s: float) -> list[Patient]:
        """Jobs with silent executions at a monotonic time, longest silent first."""
        scores = dict(self._scores())
        silent: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        ripe = self._vigil.look(scores, at_s)
        dead = self._of_the_dead()
        for lane, execution in (*ripe, *(held for held in scores if held[1] in dead and held not in ripe)):
            silent[lane, StartedJobRegistry.parse_job_id(execution)][execution] = scores[lane, execution]
        return [Patient(job_id, lane, executions) for (lane, job_id), executions in silent.items()]

    def _of_the_dead(self) -> set[str]:
        """Executions of slots that were seen to die. What a dead one sent last may come after the first look."""
        with self._redis.pipeline(transaction=False) as pipe:
            for name in dead_slots(self._redis, self._keys):
                pipe.smembers(WORKER_EXECUTIONS_KEY_TEMPLATE.format(name))
            return {execution.decode() for found in pipe.execute() for execution in found}

    def _scores(self) -> Iterator[tuple[tuple[str, str], float]]:
        for queue in lanes(self._redis):
            if queue.name.startswith(f"{CONTAINERS_POOL}."):  # a Kubernetes Job beats for them
                continue
            # Not through the registry's own methods: counting or listing makes RQ reap by its own rules.
            entries: Any = self._redis.zrange(queue.started_job_registry.key, 0, -1, withscores=True)
            for execution, score in entries:
                yield (queue.name, execution.decode()), score
