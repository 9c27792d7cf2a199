"""What workers report of themselves, and the controller of their pods: so that a user knows what a job waits for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from redis import Redis

from serinette.job import now
from serinette.names import Keys

# Presence is renewed every 5 s; four missed beats and the worker counts as gone.
BEAT_S = 5.0
PRESENCE_TTL_S = 20

# Weight of the newest song in the moving average: about the last ten count.
_PACE_WEIGHT = 0.2


class WorkerStage(StrEnum):
    """What a worker pod is doing."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class Model(BaseModel):
    """The checkpoint that a worker holds."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    name: str
    revision: str = Field(description="SHA-256 over the checkpoint's files, or the hub's commit.")
    turbo: bool
    sample_rate: int
    channels: int
    default_steps: int
    default_guidance_scale: float
    default_shift: float
    max_duration_s: float
    tasks: tuple[str, ...]


class Presence(BaseModel):
    """One worker pod, as of `at`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    pool: str
    stage: WorkerStage
    slots: int
    busy_slots: int = 0
    device: str = ""
    model: Model | None = None
    message: str = ""
    started_at: AwareDatetime
    at: AwareDatetime = Field(default_factory=now)


def announce(redis: Redis, keys: Keys, presence: Presence) -> None:
    """Report where a worker stands; holds for PRESENCE_TTL_S seconds.

    A draining worker is not counted as busy, whatever it still generates: KEDA would start another in its place.
    """
    with redis.pipeline(transaction=True) as pipe:
        pipe.set(keys.worker(presence.name), presence.model_dump_json(), ex=PRESENCE_TTL_S)
        pipe.zadd(keys.workers, {presence.name: now().timestamp() + PRESENCE_TTL_S})
        if presence.stage is WorkerStage.DRAINING:
            pipe.srem(keys.busy(presence.pool), presence.name)
        pipe.execute()


def withdraw(redis: Redis, keys: Keys, name: str) -> None:
    """Take a worker's presence back when it leaves in order."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.worker(name))
        pipe.zrem(keys.workers, name)
        pipe.execute()


def present(redis: Redis, keys: Keys) -> list[Presence]:
    """All workers that have reported lately, by name."""
    raw: list[Any] = redis.zrangebyscore(keys.workers, now().timestamp(), "+inf")
    names = [name.decode() for name in raw]
    texts = redis.mget([keys.worker(name) for name in sorted(names)]) if names else []
    return [Presence.model_validate_json(text) for text in texts if text]


class Pace(StrEnum):
    """A pool's moving averages, in seconds."""

    RUN = "run_s"  # of the attempt that made a job's songs
    COLD_START = "cold_start_s"  # from a worker's first process to its model


def record_pace(redis: Redis, keys: Keys, pool: str, seconds: float, of: Pace = Pace.RUN) -> None:
    """Fold one more into a pool's moving average. Racing writers lose a sample, no more."""
    before = redis.hget(keys.pace(pool), of)
    average = seconds if before is None else float(before) + _PACE_WEIGHT * (seconds - float(before))
    redis.hset(keys.pace(pool), of, average)


def pace(redis: Redis, keys: Keys, pool: str, of: Pace = Pace.RUN) -> float | None:
    """A pool's moving average; None before the first."""
    value = redis.hget(keys.pace(pool), of)
    return None if value is None else float(value)


# Reported anew every few seconds; what is older is not known.
HOLDUP_TTL_S = 60


class Holdup(BaseModel):
    """One pool."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pods: int = Field(0, description="Its worker pods, but for those that leave.")
    words: str = Field("", description="What holds the pod that is furthest along; empty when nothing does.")
    stuck: int = Field(0, description="Pods whose containers the cluster fails to start, again and again.")
    stuck_words: str = Field("", description="Why.")


def report_holdups(redis: Redis, keys: Keys, holdups: Mapping[str, Holdup]) -> None:
    """Replace what was reported before."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.holdups)
        if holdups:
            pipe.hset(keys.holdups, mapping={pool: holdup.model_dump_json() for pool, holdup in holdups.items()})
            pipe.expire(keys.holdups, HOLDUP_TTL_S)
        pipe.execute()


def parse_holdups(raw: Mapping[Any, Any]) -> dict[str, Holdup]:
    """The hash as `HGETALL` gives it; empty without a cluster."""
    return {pool.decode(): Holdup.model_validate_json(text) for pool, text in raw.items()}
