"""Takes out of the busy workers those that hold no work any more: killed ones, and ones that leave."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from redis import Redis

from api.maintenance.lanes import lane_queue
from serinette import busy
from serinette.brake import PROBE
from serinette.names import Keys, Lane, queue_name


def stale(held: Mapping[str, Collection[str]], beating: Collection[str]) -> dict[str, list[str]]:
    """By worker, the attempts that nobody holds any more: RQ's started registry, written in the same transactions as
    these sets, does not know them. A worker that holds nothing at all is told of with no attempt.

    `held` must have been read before `beating`.
    """
    gone = {worker: sorted(set(attempts) - set(beating)) for worker, attempts in held.items()}
    return {worker: attempts for worker, attempts in gone.items() if attempts or not held[worker]}


def prune(redis: Redis, keys: Keys, pool: str, draining: Collection[str]) -> None:
    """Compare a pool's busy workers with what is really held; those that drain leave."""
    members: Any = redis.smembers(keys.busy(pool))
    workers = sorted(member.decode() for member in members if member.decode() != PROBE)
    if not workers:
        return
    with redis.pipeline(transaction=False) as pipe:
        for worker in workers:
            pipe.smembers(keys.held(worker))
        sets = pipe.execute()
    held = {worker: {each.decode() for each in found} for worker, found in zip(workers, sets, strict=True)}
    beating: set[str] = set()
    for lane in Lane:
        entries: Any = redis.zrange(lane_queue(queue_name(pool, lane), redis).started_job_registry.key, 0, -1)
        beating |= {entry.decode() for entry in entries}
    for worker, attempts in stale(held, beating).items():
        busy.leave(redis, keys, pool, worker, attempts)
    if leaving := sorted(set(workers) & set(draining)):
        redis.srem(keys.busy(pool), *leaving)
