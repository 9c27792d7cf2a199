"""Status of the pools, read from Redis a few times a second and shared by all requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from redis import asyncio as redis_asyncio
from redis.exceptions import RedisError

from api.outages import queue_errors
from api.queue.explanations import Pool
from serinette.brake import in_force
from serinette.counters import JOBS_ENDED, SEPARATOR
from serinette.jobs.script import NO_DISK, WRITES, text
from serinette.names import Keys, Lane
from serinette.pools import PoolFacts, of_name
from serinette.presence import Holdup, Pace, Presence, from_redis_time

MAX_AGE_S = 0.25

# Jobs that ended, by pool, then by outcome and error code.
Ended = Mapping[str, Mapping[tuple[str, str], int]]


@dataclass(frozen=True, slots=True)
class PoolStatuses:
    """Status of the pools by one read. `read_s`: its start, by the monotonic clock."""

    pools: Mapping[str, Pool]
    workers: Sequence[Presence]
    read_s: float


class PoolStatusReader:
    """Reads the status of all pools, cached in this process.

    At most one read is in progress; callers that need a newer status wait for it, or for the next one.
    """

    def __init__(self, redis: redis_asyncio.Redis, keys: Keys, published: Sequence[PoolFacts] = ()) -> None:
        """`published`: configuration of the pools, known without their workers."""
        self._redis = redis
        self._keys = keys
        self._published = published
        self._names = {pool.name for pool in published}
        self._last = PoolStatuses({}, (), -1e9)
        self._reading: asyncio.Task[None] | None = None

    async def read(self, names: Collection[str] = (), *, fresh: bool = False) -> PoolStatuses:
        """Status of these and all other known pools, no older than MAX_AGE_S; with `fresh`, no older than this call.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        started_s = time.monotonic()
        oldest_s = started_s if fresh else started_s - MAX_AGE_S
        last = self._last
        if last.read_s >= oldest_s and all(name in last.pools for name in names):
            return last
        self._names.update(names)
        with queue_errors():
            while self._last.read_s < oldest_s or any(name not in self._last.pools for name in names):
                await self._next_reading()
        return self._last

    async def _next_reading(self) -> None:
        # done() is checked because awaiting a finished task does not yield, so that no other caller could start a read.
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_retrieve_exception)
        # shield(), because a canceled caller must not cancel the read for the others.
        await asyncio.shield(self._reading)

    async def _read(self) -> None:
        began_s, names = time.monotonic(), set(self._names)
        at, workers = await self._workers()
        names.update(worker.pool for worker in workers)
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                for lane in Lane:
                    pipe.zcard(self._keys.waiting(name, lane))
                    pipe.zcard(self._keys.started(name, lane))
                pipe.hmget(self._keys.pace(name), [Pace.RUN, Pace.COLD_START])
                pipe.smembers(self._keys.brake(name))
            pipe.hgetall(self._keys.holdups)
            pipe.hgetall(self._keys.counters)
            if not workers:  # their reports may be what is refused
                pipe.eval(WRITES, 0)
            found = await pipe.execute(raise_on_error=False)
        queue_full = not workers and NO_DISK in str(found.pop())
        if failed := next((each for each in found if isinstance(each, RedisError)), None):
            raise failed
        *counts, holdups, counted = found
        size = len(counts) // len(names) if names else 0
        ended = _ended(counted)
        words = {text(pool): Holdup.model_validate_json(found) for pool, found in holdups.items()}
        pools = {
            name: self._pool(name, counts[i * size : (i + 1) * size], workers, ended, words.get(name))
            for i, name in enumerate(names)
        }
        pools = {name: replace(pool, at=at, queue_full=queue_full) for name, pool in pools.items()}
        self._last = PoolStatuses(pools, workers, began_s)

    async def _workers(self) -> tuple[datetime, tuple[Presence, ...]]:
        """Redis's time, and presence of all running workers by name."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(self._keys.workers, 0, -1, withscores=True)
            seconds, found = await pipe.execute()
        at = from_redis_time(seconds)
        names = sorted(text(name) for name, until_s in found if until_s >= at.timestamp())
        texts = await self._redis.mget([self._keys.worker(name) for name in names]) if names else []
        return at, tuple(Presence.model_validate_json(found) for found in texts if found)

    def _pool(
        self, name: str, raw: Sequence[Any], workers: Iterable[Presence], ended: Ended, holdup: Holdup | None
    ) -> Pool:
        *counts, (pace_s, cold_start_s), reasons = raw
        return Pool(
            name=name,
            waiting=dict(zip(Lane, counts[::2], strict=True)),
            running=sum(counts[1::2]),
            ended=ended.get(name, {}),
            workers=tuple(worker for worker in workers if worker.pool == name),
            pace_s=None if pace_s is None else float(pace_s),
            cold_start_s=None if cold_start_s is None else float(cold_start_s),
            brake=in_force(reasons),
            holdup=holdup,
            facts=of_name(self._published, name),
        )


def _retrieve_exception(reading: asyncio.Task[None]) -> None:
    if not reading.cancelled():
        reading.exception()  # avoids asyncio's warning if all callers were canceled


def _ended(counted: Mapping[Any, Any]) -> Ended:
    """Jobs that ended since Redis began, from the counters' hash."""
    found: dict[str, dict[tuple[str, str], int]] = {}
    for field, value in counted.items():
        name, *labels = text(field).split(SEPARATOR)
        if name == JOBS_ENDED.name and len(labels) == len(JOBS_ENDED.labels):
            found.setdefault(labels[0], {})[labels[1], labels[2]] = int(value)
    return found
