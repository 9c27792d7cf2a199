"""Presence: what workers report of themselves and the controller of their pods, to explain what a job waits for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AwareDatetime, Field

from serinette.job import WaitingCode, now
from serinette.names import Keys
from serinette.spec import RecordModel

if TYPE_CHECKING:
    from redis import Redis  # of the server extra, which clients of the models do without

# Presence is renewed every 5 s; after four missed renewals the worker counts as gone.
BEAT_S = 5.0
PRESENCE_TTL_S = 20
# What a worker that had to end leaves behind: until its supervisor has started it again, a minute later at most.
ENDED_TTL_S = 90

# What keeps a worker from taking jobs, in words for tenants: no path, no address. Its log has the rest.
TROUBLES: Mapping[WaitingCode | str | None, str] = MappingProxyType(
    {
        WaitingCode.CONFIGURATION: "an operator: a worker refuses its configuration or model, and its log says why",
        WaitingCode.DISK: "room on the disk of a worker, which is full",
        WaitingCode.STORE: "the object store, to which workers first have to bring the songs that they keep",
        WaitingCode.QUEUE: "the queue's server, which has no room, in memory or on its disk",
    }
)

# Weight of the newest value in the moving average, which covers about the last ten.
_PACE_WEIGHT = 0.2


class WorkerStage(StrEnum):
    """What a worker pod is doing."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


class Model(RecordModel):
    """The checkpoint that a worker has loaded."""

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
    planner: str | None = Field(None, description="Name of the planner beside it; null where there is none.")


class ColdStart(RecordModel):
    """Seconds of a worker's start, part by part in their order; null before a part is over, or where it is not seen."""

    node_s: float | None = Field(None, description="From the pod's creation to a node for it. Known to a cluster only.")
    image_s: float | None = Field(
        None, description="From there to its container's start: image pull and volumes. Known to a cluster only."
    )
    weights_s: float | None = Field(None, description="Finding or fetching the checkpoint.")
    load_s: float | None = Field(None, description="Starting the engine and loading the model into memory.")
    compile_s: float | None = Field(None, description="Compiling it; null where a pool does not compile.")
    first_song_s: float | None = Field(None, description="Generating the first song, which may be slower than others.")

    def parts(self) -> dict[str, float]:
        """Those that are known, by their names without `_s`."""
        return {name.removesuffix("_s"): seconds for name, seconds in self.model_dump(exclude_none=True).items()}


class Presence(RecordModel):
    """One worker pod, as of `at`."""

    name: str
    pool: str
    stage: WorkerStage
    slots: int
    busy_slots: int = 0
    device: str = ""
    model: Model | None = None
    message: str = ""
    trouble: Annotated[WaitingCode | str, Field(union_mode="left_to_right")] | None = Field(
        None, description="What keeps it from taking jobs: one of TROUBLES or `restart`; null when nothing does."
    )
    cold_start: ColdStart = ColdStart()
    started_at: AwareDatetime
    loading_since: AwareDatetime | None = Field(None, description="When it last began to load, if it was ready before.")
    fetched_bytes: int = Field(0, description="Of a checkpoint that is being downloaded, what has come.")
    checkpoint_bytes: int = Field(0, description="Its size; 0 when nothing is downloaded, or it is not known.")
    at: AwareDatetime = Field(default_factory=now)

    def shifted(self, by: timedelta) -> Presence:
        """The same with its times moved to another clock. Less than a second is the network's, not a clock's."""
        if abs(by) < timedelta(seconds=1):
            return self
        names = ("started_at", "loading_since", "at")
        return self.model_copy(update={name: at + by for name in names if (at := getattr(self, name)) is not None})


def redis_time(redis: Redis) -> datetime:
    """Redis's clock, by which all that several machines compare is written and read."""
    return from_redis_time(redis.time())


def from_redis_time(answer: tuple[int, int]) -> datetime:
    """The answer of TIME."""
    seconds, microseconds = answer
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


def trouble_of(workers: Collection[Presence]) -> tuple[WaitingCode, str] | None:
    """What keeps all of these workers from taking jobs, by the first of them: a code, and words. None: nothing does."""
    if not workers or not all(worker.trouble for worker in workers):
        return None
    first = next(iter(workers))
    if isinstance(first.trouble, WaitingCode) and first.trouble in TROUBLES:
        return first.trouble, TROUBLES[first.trouble]
    return WaitingCode.RESTART, f"the worker, which starts again: {first.message}"


def announce(redis: Redis, keys: Keys, presence: Presence, ttl_s: int = PRESENCE_TTL_S) -> None:
    """Report a worker's presence, valid for `ttl_s` seconds. Its times, which are of this machine's clock, are
    reported by Redis's.

    A draining worker is removed from the busy set even while it generates: otherwise KEDA would start a replacement.
    """
    at = redis_time(redis)
    presence = presence.shifted(at - now())
    with redis.pipeline(transaction=True) as pipe:
        pipe.set(keys.worker(presence.name), presence.model_dump_json(), ex=ttl_s)
        pipe.zadd(keys.workers, {presence.name: at.timestamp() + ttl_s})
        if presence.stage is WorkerStage.DRAINING:
            pipe.srem(keys.busy(presence.pool), presence.name)
        pipe.execute()


def withdraw(redis: Redis, keys: Keys, name: str) -> None:
    """Delete a worker's presence when it shuts down."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.worker(name))
        pipe.zrem(keys.workers, name)
        pipe.execute()


def present(redis: Redis, keys: Keys) -> list[Presence]:
    """Presence of all running workers, by name."""
    raw: list[Any] = redis.zrangebyscore(keys.workers, redis_time(redis).timestamp(), "+inf")
    names = [name.decode() for name in raw]
    texts = redis.mget([keys.worker(name) for name in sorted(names)]) if names else []
    return [Presence.model_validate_json(text) for text in texts if text]


class Pace(StrEnum):
    """A pool's moving averages, in seconds."""

    RUN = "run_s"  # of the attempt that succeeded
    COLD_START = "cold_start_s"  # from the start of a worker to its loaded model


def record_pace(redis: Redis, keys: Keys, pool: str, seconds: float, of: Pace = Pace.RUN) -> None:
    """Add a value to a pool's moving average. A race between two writers loses one value."""
    before = redis.hget(keys.pace(pool), of)
    average = seconds if before is None else float(before) + _PACE_WEIGHT * (seconds - float(before))
    redis.hset(keys.pace(pool), of, average)


def pace(redis: Redis, keys: Keys, pool: str, of: Pace = Pace.RUN) -> float | None:
    """A pool's moving average; None before the first."""
    value = redis.hget(keys.pace(pool), of)
    return None if value is None else float(value)


# Reported again every few seconds; an older report is stale.
HOLDUP_TTL_S = 60


class Holdup(RecordModel):
    """What keeps a pool's pods from starting."""

    pods: int = Field(0, description="Its worker pods, without those that terminate.")
    words: str = Field("", description="What the pod that is furthest along waits for; empty when it runs.")
    stuck: int = Field(0, description="Pods whose containers the cluster repeatedly fails to start.")
    stuck_words: str = Field("", description="Why they are stuck.")
    detail: str = Field("", description="The cluster's own sentences, for operators.")


def report_holdups(redis: Redis, keys: Keys, holdups: Mapping[str, Holdup]) -> None:
    """Replace the report of all pools."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.holdups)
        if holdups:
            pipe.hset(keys.holdups, mapping={pool: holdup.model_dump_json() for pool, holdup in holdups.items()})
            pipe.expire(keys.holdups, HOLDUP_TTL_S)
        pipe.execute()


def parse_holdups(raw: Mapping[Any, Any]) -> dict[str, Holdup]:
    """Parse the hash as `HGETALL` returns it; empty without a cluster."""
    return {pool.decode(): Holdup.model_validate_json(text) for pool, text in raw.items()}
