"""The lanes that exist, and what RQ's own workers would tidy in its registries: plain commands, no transition."""

from __future__ import annotations

from typing import Any

from redis import Redis

from serinette.jobs.script import text
from serinette.names import Keys, Lane, queue_name

_LANES = frozenset(Lane)
_ENDED = ("finished", "failed", "canceled")


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
