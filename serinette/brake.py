"""The scale-up brake: reasons not to start more workers of a pool, and the failed loads that workers report.

The controller decides (controller/autoscaling.py) and writes a set of reasons, each `{code}: {words}`, which it renews
before it expires. KEDA reads only the size of the set; users see the words.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Any

from redis import Redis

from serinette.names import Keys, host_of
from serinette.spec import RecordModel

# A brake expires without a controller that renews it, so that it cannot stop a pool for ever.
BRAKE_TTL_S = 60
# Member of a braked pool's busy set that admits one probing worker, which shows when loads succeed again.
PROBE = "probe"

_FAILURES_KEPT = 100
_FAILURES_TTL_S = 86_400


class Cause(StrEnum):
    """Codes of reasons."""

    STORE = "store"  # songs cannot be stored
    LOAD = "load"  # workers fail to load their model
    POD = "pod"  # the cluster cannot start their containers
    SUSPENDED = "suspended"  # an operator ran `rq suspend`


class Failure(RecordModel):
    """One failed load of a model."""

    worker: str
    message: str
    at_s: float

    @property
    def pod(self) -> str:
        """The pod's name; a restarted container is a new worker of the same pod."""
        return host_of(self.worker)


def load_failed(redis: Redis, keys: Keys, pool: str, worker: str, message: str) -> None:
    """Report that a worker's engine ended before it was ready."""
    at_s, _ = redis.time()  # the workers' clocks differ
    with redis.pipeline(transaction=True) as pipe:
        pipe.lpush(keys.failures(pool), Failure(worker=worker, message=message, at_s=at_s).model_dump_json())
        pipe.ltrim(keys.failures(pool), 0, _FAILURES_KEPT - 1)
        pipe.expire(keys.failures(pool), _FAILURES_TTL_S)
        pipe.execute()


def load_passed(redis: Redis, keys: Keys, pool: str) -> None:
    """Report that a worker's engine became ready, which clears earlier failures."""
    redis.delete(keys.failures(pool))


def failures(redis: Redis, keys: Keys, pool: str) -> list[Failure]:
    """Failed loads since the last successful one, newest first."""
    found: Any = redis.lrange(keys.failures(pool), 0, -1)
    return [Failure.model_validate_json(text) for text in found]


def set_reasons(redis: Redis, keys: Keys, pool: str, reasons: Collection[str]) -> None:
    """Replace the reasons, valid for BRAKE_TTL_S; no reasons release the brake."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.brake(pool))
        if reasons:
            pipe.sadd(keys.brake(pool), *reasons)
            pipe.expire(keys.brake(pool), BRAKE_TTL_S)
        pipe.execute()


def in_force(members: Collection[bytes | str]) -> tuple[str, ...]:
    """A brake's reasons as Redis returns them, sorted."""
    return tuple(sorted(member.decode() if isinstance(member, bytes) else member for member in members))


def describe(reasons: Sequence[str]) -> str:
    """The reasons as text, without their codes."""
    return "; ".join(reason.partition(": ")[2] for reason in reasons)
