"""The lanes that exist, and what stays behind in RQ's lists and registries: none of it changes a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis

from serinette.jobs.script import text
from serinette.names import Keys, Lane, queue_name

_LANES = frozenset(Lane)
_ENDED = ("finished", "failed", "canceled")

# Take ids of jobs that do not wait out of a part of RQ's list. One step, as a job that is canceled and submitted again
# under its key may wait at any moment. Those of which nothing is known go aside, as they do when a claim meets them.
# Removed by one LREM from the nearer end: each by its own would look through all that is before it once more.
# KEYS: list, waiting, ids without a record. ARGV: keys of a record and of a shrunk one without the id, first place,
# how many. Answers how many were looked at and removed.
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
    """Pool and lane of an RQ queue by its name; None of one that is not ours."""
    pool, _, lane = queue.rpartition(".")
    return (pool, Lane(lane)) if pool and lane in _LANES else None


def known_lanes(redis: Redis, keys: Keys) -> list[tuple[str, Lane]]:
    """All lanes that ever got a job, pool by pool. Raises RedisError."""
    found: Any = redis.smembers(f"{keys.prefix}:queues")
    names = (text(each).removeprefix(f"{keys.prefix}:queue:") for each in found)
    return sorted(lane for name in names if (lane := parse_lane(name)))


def started_key(keys: Keys, pool: str, lane: Lane) -> str:
    """RQ's registry of a lane's attempts that run, which the transitions keep."""
    return f"{keys.prefix}:wip:{queue_name(pool, lane)}"


class ListPruner:
    """Keeps RQ's lists, which RQ's own tools count, from growing by ids of jobs that were canceled deep in them."""

    def __init__(self, redis: Redis, keys: Keys, most: int = 1_000) -> None:
        """`most`: ids looked at in a list at a time: a millisecond of the server, some in a list of 100,000."""
        self._redis = redis
        self._keys = keys
        self._most = most
        self._places: dict[str, int] = {}

    def __call__(self, lanes: Sequence[tuple[str, Lane]]) -> int:
        """Look at the next part of each list that is longer than what waits; how many ids went. Raises RedisError."""
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
        answer: Any = self._redis.eval(_PRUNE, 3, *named, keys.job(""), keys.ended_job(""), place, self._most)
        looked_at, dead = int(answer[0]), int(answer[1])
        # Claims shorten the list meanwhile: what was passed over is looked at the next time round.
        self._places[queue] = place + looked_at - dead if looked_at == self._most else 0
        return dead


def trim_registries(redis: Redis, keys: Keys, retention_s: int) -> None:
    """Forget jobs whose time in a registry of ended ones is over, and workers whose hash has expired.

    RQ does both in its workers and whenever somebody counts. Ids without a record that claims put aside go, too, after
    `retention_s`. Raises RedisError.
    """
    at_s, _ = redis.time()
    queues = [queue_name(pool, lane) for pool, lane in known_lanes(redis, keys)]
    with redis.pipeline(transaction=False) as pipe:
        for queue in queues:
            for registry in _ENDED:
                pipe.zremrangebyscore(f"{keys.prefix}:{registry}:{queue}", "-inf", at_s)
            # A stray `rq worker` of one queue keeps there what it took; the transitions know that it waits.
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
