"""What autoscalers go by: the scale-up brake of each pool, and the marks of pods that hold work.

Who is busy is written by the transitions of serinette/jobs. The brake is docs/decisions/0014: waste is a GPU that is
paid for and cannot generate, because its song could not be kept or because its worker does not come up. A pod that
waits for a GPU that is not there costs nothing and makes the autoscaler bring one, so want of capacity is no reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from controller.cluster import FIELD_MANAGER
from controller.settings import ControllerSettings
from serinette import brake
from serinette.brake import Cause, Failure
from serinette.errors import StoreUnavailable
from serinette.jobs.registries import known_lanes
from serinette.names import Lane
from serinette.presence import Holdup, Presence, WorkerStage, parse_holdups, present, redis_time
from serinette.store import Store

log = logging.getLogger(__name__)

_ASK_STORE_EVERY_S = 15.0

# -- the plan of the brake


@dataclass(frozen=True, slots=True)
class PoolSeen:
    """One pool, and the store that it shares with the others, at one moment (Unix seconds of Redis's clock)."""

    at_s: float
    failures: Sequence[Failure] = ()  # newest first, since a load last passed
    ready: int = 0  # workers that hold a model
    waiting: int = 0  # jobs in its lanes
    store_away_s: float = 0.0
    stuck: int = 0  # pods that the cluster cannot start, again and again
    stuck_words: str = ""
    suspended: bool = False  # `rq suspend` holds


def plan_brake(seen: PoolSeen, settings: ControllerSettings) -> tuple[tuple[str, ...], bool]:
    """The reasons that hold now, and whether one worker may be tried all the same. Where most workers are well, a few
    that are not brake no others.
    """
    reasons, store_away = [], seen.store_away_s >= settings.brake_store_s
    if store_away:
        reasons.append(f"{Cause.STORE}: the store has not answered for over {settings.brake_store_s:g} s")
    if failing := _failing_loads(seen, settings):
        reasons.append(f"{Cause.LOAD}: {failing}")
    if seen.stuck and seen.stuck >= seen.ready:
        reasons.append(f"{Cause.POD}: {seen.stuck_words}")
    # While the store is away a worker that comes up shows nothing; the store itself is asked.
    probe = bool(reasons) and not store_away and seen.waiting > 0 and not seen.suspended
    if seen.suspended:
        reasons.append(f"{Cause.SUSPENDED}: an operator ran `rq suspend`, and no job begins until `rq resume`")
    return tuple(reasons), probe


def _failing_loads(seen: PoolSeen, settings: ControllerSettings) -> str | None:
    memory_s = settings.brake_memory_s
    if len(seen.failures) < settings.brake_failures or seen.at_s - seen.failures[0].at_s > memory_s:
        return None
    recent = {failure.pod for failure in seen.failures if seen.at_s - failure.at_s <= memory_s}
    if len(recent) < seen.ready:
        return None
    return f"the last {len(seen.failures)} loads of the model failed: {seen.failures[0].message}"


# -- the plan of the marks

# Hints: a ReplicaSet prefers to end pods of a lower deletion cost, cluster-autoscaler and Karpenter leave nodes of
# marked pods alone. What they do not keep away, the drain and the records bear. Pods without the first cost 0. The API
# forbids frequent changes of it, so it distinguishes busy from idle only.
MARKS: Mapping[str, str] = {
    "controller.kubernetes.io/pod-deletion-cost": "100",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}


def plan_marks(
    pods: Sequence[Mapping[str, Any]], busy: Collection[str], idle: Collection[str], most: int
) -> dict[str, dict[str, str | None]]:
    """The next patches, by pod, no more than `most`: marks for busy pods first, then none for those long idle. None
    removes an annotation.

    `busy` and `idle` are names of pods. A pod in neither was busy a moment ago and may be again in the next: it
    keeps what it has. Marks of another value are not ours and stay, as do those that it was made with.
    """
    mark, clear = [], []
    for pod in pods:
        metadata = pod["metadata"]
        if "deletionTimestamp" in metadata:
            continue
        has = metadata.get("annotations") or {}
        if metadata["name"] in busy:
            missing = {name: value for name, value in MARKS.items() if has.get(name) != value}
            mark += [(metadata["name"], missing)] if missing else []
        elif metadata["name"] in idle:
            theirs = _set_by_others(metadata.get("managedFields") or [])
            ours = [name for name, value in MARKS.items() if has.get(name) == value and name not in theirs]
            clear += [(metadata["name"], dict.fromkeys(ours))] if ours else []
    return dict([*mark, *clear][:most])


def _set_by_others(managed: Sequence[Mapping[str, Any]]) -> set[str]:
    """The annotations that another than us has set: the pool's template, say."""
    ours = {FIELD_MANAGER, "OpenAPI-Generator"}  # the second: the Kubernetes client, unless it is named
    others = [each for each in managed if each.get("manager") not in ours]
    fields = [each.get("fieldsV1", {}).get("f:metadata", {}).get("f:annotations", {}) for each in others]
    return {name.removeprefix("f:") for each in fields for name in each}


# -- the duty


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
                unwatched = at_s > self._ask_at_s + 4 * _ASK_STORE_EVERY_S  # another replica led meanwhile
                if self._away_since_s is None or unwatched:
                    self._away_since_s = at_s
            self._ask_at_s = at_s + _ASK_STORE_EVERY_S
        return 0.0 if self._away_since_s is None else at_s - self._away_since_s


class Brakes:
    """The duty: one round over all pools, those of the settings and those that were ever used."""

    def __init__(self, redis: Redis, store: Store, settings: ControllerSettings) -> None:
        self._redis = redis
        self._keys = settings.keys
        self._settings = settings
        self._store = StoreWatch(store)
        self._causes: dict[str, list[str]] = {}  # in force, by pool

    def __call__(self) -> None:
        """Raises RedisError when Redis does not answer."""
        away_s = self._store.away_s(time.monotonic())
        workers = present(self._redis, self._keys)
        holdups = parse_holdups(self._redis.hgetall(self._keys.holdups))
        used = (pool for pool, _ in known_lanes(self._redis, self._keys))
        configured = (pool.name for pool in self._settings.pools)
        for pool in sorted({*configured, *used, *(worker.pool for worker in workers)}):
            seen = self._seen(pool, workers, away_s, holdups)
            self._put_in_force(pool, *plan_brake(seen, self._settings))

    def _seen(self, pool: str, workers: Sequence[Presence], away_s: float, holdups: Mapping[str, Holdup]) -> PoolSeen:
        holdup = holdups.get(pool, Holdup())
        return PoolSeen(
            at_s=redis_time(self._redis).timestamp(),
            failures=brake.failures(self._redis, self._keys, pool),
            ready=sum(worker.pool == pool and worker.stage is WorkerStage.READY for worker in workers),
            waiting=sum(int(self._redis.zcard(self._keys.waiting(pool, lane))) for lane in Lane),
            store_away_s=away_s,
            stuck=holdup.stuck,
            stuck_words=holdup.stuck_words,
            suspended=bool(self._redis.exists(self._keys.suspended)),
        )

    def _put_in_force(self, pool: str, reasons: Sequence[str], probe: bool) -> None:
        brake.set_reasons(self._redis, self._keys, pool, reasons)
        change = self._redis.sadd if probe else self._redis.srem
        change(self._keys.busy(pool), brake.PROBE)
        causes = [reason.partition(":")[0] for reason in reasons]
        if causes != self._causes.get(pool, []):
            why = brake.describe(reasons)
            log.warning("pool %s: %s", pool, f"no more workers are started: {why}" if why else "the brake is off")
        self._causes[pool] = causes
