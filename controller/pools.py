"""Keeps what KEDA reads of each pool true: whether the brake is on. Who is busy, the transitions say."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence

from redis import Redis

from controller.brake import Rules, Seen, decide
from controller.settings import ControllerSettings
from serinette import brake
from serinette.errors import StoreUnavailable
from serinette.jobs.registries import known_lanes
from serinette.names import Lane
from serinette.presence import Holdup, Presence, WorkerStage, parse_holdups, present
from serinette.settings import connect_redis
from serinette.store import Store

log = logging.getLogger(__name__)

_ASK_STORE_EVERY_S = 15.0


class StoreWatch:
    """For how long the store has not answered."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._away_since_s: float | None = None
        self._ask_at_s = 0.0

    def away_s(self, at_s: float) -> float:
        """Seconds since the first of the answers that did not come; 0 while it answers. May take seconds itself."""
        if at_s >= self._ask_at_s:
            try:
                self._store.ping()
                self._away_since_s = None
            except StoreUnavailable:
                unwatched = at_s > self._ask_at_s + 4 * _ASK_STORE_EVERY_S  # another replica was at work
                if self._away_since_s is None or unwatched:
                    self._away_since_s = at_s
            self._ask_at_s = at_s + _ASK_STORE_EVERY_S
        return 0.0 if self._away_since_s is None else at_s - self._away_since_s


class Pools:
    """One round over all pools, those that are told of and those that somebody ever used."""

    def __init__(self, settings: ControllerSettings, store: Store, redis: Redis | None = None) -> None:
        self._redis = redis or connect_redis(settings)
        self._keys = settings.keys
        self._told = tuple(pool.name for pool in settings.pools)
        self._rules = Rules(settings.brake_failures, settings.brake_memory_s, settings.brake_store_s)
        self._store = StoreWatch(store)
        self._in_force: dict[str, tuple[str, ...]] = {}

    def __call__(self) -> None:
        """Raises RedisError when Redis does not answer."""
        at_s = time.monotonic()
        away_s = self._store.away_s(at_s)
        workers = present(self._redis, self._keys)
        names = self._names(workers)
        known = parse_holdups(self._redis.hgetall(self._keys.holdups))
        for pool in names:
            ready = sum(worker.pool == pool and worker.stage is WorkerStage.READY for worker in workers)
            self._brake(pool, self._seen(pool, ready, away_s, known.get(pool, Holdup())))

    def _names(self, workers: Sequence[Presence]) -> list[str]:
        used = (pool for pool, _ in known_lanes(self._redis, self._keys))
        return sorted({*self._told, *used, *(worker.pool for worker in workers)})

    def _seen(self, pool: str, ready: int, away_s: float, holdup: Holdup) -> Seen:
        seconds, micros = self._redis.time()
        return Seen(
            at_s=seconds + micros / 1e6,
            failures=brake.failures(self._redis, self._keys, pool),
            ready=ready,
            waiting=sum(int(self._redis.zcard(self._keys.waiting(pool, lane))) for lane in Lane),
            store_away_s=away_s,
            stuck=holdup.stuck,
            stuck_words=holdup.stuck_words,
        )

    def _brake(self, pool: str, seen: Seen) -> None:
        verdict = decide(seen, self._rules)
        brake.pull(self._redis, self._keys, pool, verdict.reasons)
        change = self._redis.sadd if verdict.probe else self._redis.srem
        change(self._keys.busy(pool), brake.PROBE)
        before = self._in_force.get(pool, ())
        if causes(verdict.reasons) != causes(before):
            told = brake.words(verdict.reasons)
            log.warning("pool %s: %s", pool, f"no more workers are started: {told}" if told else "the brake is off")
        self._in_force[pool] = verdict.reasons


def causes(reasons: Collection[str]) -> Counter[str]:
    """The reasons' codes."""
    return Counter(reason.partition(":")[0] for reason in reasons)
