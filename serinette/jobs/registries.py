"""The known lanes, and the cleanup of RQ's lists and registries. Nothing here changes a job's state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.client import Pipeline

from serinette.jobs.script import text
from serinette.names import Keys, Lane, queue_name

_LANES = frozenset(Lane)
_HEAD = 10
_ENDED = ("finished", "failed", "canceled")

# Removes ids of jobs that are not queued from a part of RQ's list. It is one script because a canceled job may be
# submitted again under its Idempotency-Key at any moment. Ids without a record are set aside, as a claim does.
# All are removed by one LREM from the nearer end, because one LREM for each would scan the list each time.
# KEYS: list, waiting, ids without a record. ARGV: key prefixes of a record and of a shrunk one, first index, count.
# Answers how many ids were examined and removed.
_PRUNE = """#!lua flags=allow-oom
local first, most, dead = tonumber(ARGV[3]), tonumber(ARGV[4]), 0
local ids = redis.call('LRANGE', KEYS[1], first, first + most - 1)
for i, id in ipairs(ids) do
    if not redis.call('ZSCORE', KEYS[2], id) then
        if redis.call('EXISTS', ARGV[1] .. id, ARGV[2] .. id) == 0 then redis.call('RPUSH', KEYS[3], id) end
        redis.call('LSET', KEYS[1], first + i - 1, '')
        dead = dead + 1
    end
end
local from_head = first < redis.call('LLEN', KEYS[1]) / 2
if dead > 0 then redis.call('LREM', KEYS[1], from_head and dead or -dead, '') end
return {#ids, dead}
"""


def parse_lane(queue: str) -> tuple[str, Lane] | None:
    """Pool and lane of an RQ queue by its name; None if it is not a lane."""
    pool, _, lane = queue.rpartition(".")
    return (pool, Lane(lane)) if pool and lane in _LANES else None


def known_lanes(redis: Redis, keys: Keys) -> list[tuple[str, Lane]]:
    """All lanes that ever received a job, pool by pool. Raises RedisError."""
    found: Any = redis.smembers(f"{keys.prefix}:queues")
    names = (text(each).removeprefix(f"{keys.prefix}:queue:") for each in found)
    return sorted(lane for name in names if (lane := parse_lane(name)))


def ask_heads(pipe: Pipeline | AsyncPipeline, waiting: str) -> None:
    """Ask a pipeline, of either kind, for the ids among which a lane's oldest job is: its head, where jobs that were
    given back stand in no order of their submits, and the first that never ran.
    """
    pipe.zrange(waiting, 0, _HEAD - 1)
    pipe.zrange(waiting, 0, "+inf", byscore=True, offset=0, num=1)


def oldest_s(submitted: Sequence[float | None], at_s: float) -> float | None:
    """Seconds since the earliest submit; None without one."""
    known = [each for each in submitted if each is not None]
    return max(0.0, at_s - min(known)) if known else None


class ListPruner:
    """Removes ids of canceled jobs from the middle of RQ's lists, which RQ's own tools count."""

    def __init__(self, redis: Redis, keys: Keys, most: int = 1_000) -> None:
        """`most`: ids examined per list and call; takes about a millisecond of the server."""
        self._redis = redis
        self._keys = keys
        self._most = most
        self._script = redis.register_script(_PRUNE)
        self._places: dict[str, int] = {}

    def __call__(self, lanes: Sequence[tuple[str, Lane]]) -> int:
        """Prune the next part of each list that has more ids than queued jobs; how many went. Raises RedisError."""
        with self._redis.pipeline(transaction=False) as pipe:
            for pool, lane in lanes:
                pipe.llen(f"{self._keys.prefix}:queue:{queue_name(pool, lane)}")
                pipe.zcard(self._keys.waiting(pool, lane))
            lengths = pipe.execute()
        longer = (lane for lane, ids, waiting in zip(lanes, lengths[::2], lengths[1::2], strict=True) if ids > waiting)
        return sum(self._prune(pool, lane) for pool, lane in longer)

    def _prune(self, pool: str, lane: Lane) -> int:
        queue, keys = queue_name(pool, lane), self._keys
        place = self._places.get(queue, 0)
        named = (f"{keys.prefix}:queue:{queue}", keys.waiting(pool, lane), keys.unknown_jobs(queue))
        answer: Any = self._script(named, [keys.job(""), keys.ended_job(""), place, self._most])
        looked_at, dead = int(answer[0]), int(answer[1])
        # Claims shorten the list meanwhile: ids that this skips are examined in the next round.
        self._places[queue] = place + looked_at - dead if looked_at == self._most else 0
        return dead


def trim_registries(redis: Redis, keys: Keys, retention_s: int) -> None:
    """Remove expired jobs from RQ's registries of ended jobs, and workers whose hash has expired.

    RQ does both only in its own workers and when a registry is counted. Ids without a record, which claims set aside,
    expire after `retention_s`. Raises RedisError.
    """
    at_s, _ = redis.time()
    queues = [queue_name(pool, lane) for pool, lane in known_lanes(redis, keys)]
    with redis.pipeline(transaction=False) as pipe:
        for queue in queues:
            for registry in _ENDED:
                pipe.zremrangebyscore(f"{keys.prefix}:{registry}:{queue}", "-inf", at_s)
            # An `rq worker` that was started by mistake keeps ids here; their jobs are still in the waiting set.
            pipe.delete(f"{keys.prefix}:queue:{queue}:intermediate")
            pipe.expire(keys.unknown_jobs(queue), retention_s, nx=True)
        pipe.execute()
    for registry in [f"{keys.prefix}:workers", *(f"{keys.prefix}:workers:{queue}" for queue in queues)]:
        _forget_workers(redis, registry)


def _forget_workers(redis: Redis, registry: str) -> None:
    members: Any = list(redis.smembers(registry))
    with redis.pipeline(transaction=False) as pipe:
        for member in members:
            pipe.exists(text(member))
        found = pipe.execute()
    if gone := [member for member, known in zip(members, found, strict=True) if not known]:
        redis.srem(registry, *gone)
