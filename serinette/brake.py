"""The brake: why starting more of a pool's workers would be waste, and what workers tell of loads that failed.

The controller decides (controller/autoscaling.py) and writes a set of reasons, each `{code}: {words}`, that it keeps
from expiring. KEDA reads no more than its size; people read the words.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict
from redis import Redis

from serinette.names import Keys, host_of

# Kept no longer than this without being renewed: a brake that nobody watches must not hold a pool for ever.
BRAKE_TTL_S = 60
# Stands among the busy workers of a braked pool for the one that is still let try: it shows when loads pass again.
PROBE = "probe"

_FAILURES_KEPT = 100
_FAILURES_TTL_S = 86_400

# By Redis's clock: those of workers differ. KEYS: failures. ARGV: worker, message, kept, TTL.
_FAIL = """
local at = tonumber(redis.call('TIME')[1])
redis.call('LPUSH', KEYS[1], cjson.encode({worker = ARGV[1], message = ARGV[2], at_s = at}))
redis.call('LTRIM', KEYS[1], 0, ARGV[3] - 1)
redis.call('EXPIRE', KEYS[1], ARGV[4])
"""


class Cause(StrEnum):
    """Codes of reasons."""

    STORE = "store"  # songs could not be kept
    LOAD = "load"  # workers do not get their model loaded
    POD = "pod"  # the cluster cannot start their containers


class Failure(BaseModel):
    """One load that failed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    worker: str
    message: str
    at_s: float

    @property
    def pod(self) -> str:
        """A container that starts again is another worker on the same host."""
        return host_of(self.worker)


def load_failed(redis: Redis, keys: Keys, pool: str, worker: str, message: str) -> None:
    """A worker's engine ended before it was ready."""
    redis.eval(_FAIL, 1, keys.failures(pool), worker, message, str(_FAILURES_KEPT), str(_FAILURES_TTL_S))


def load_passed(redis: Redis, keys: Keys, pool: str) -> None:
    """A worker's engine became ready: what failed before is forgotten."""
    redis.delete(keys.failures(pool))


def failures(redis: Redis, keys: Keys, pool: str) -> list[Failure]:
    """Loads that failed since one last passed, newest first."""
    found: Any = redis.lrange(keys.failures(pool), 0, -1)
    return [Failure.model_validate_json(text) for text in found]


def set_reasons(redis: Redis, keys: Keys, pool: str, reasons: Collection[str]) -> None:
    """Put exactly these reasons in force, until BRAKE_TTL_S from now; none releases the brake."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.brake(pool))
        if reasons:
            pipe.sadd(keys.brake(pool), *reasons)
            pipe.expire(keys.brake(pool), BRAKE_TTL_S)
        pipe.execute()


def in_force(members: Collection[bytes | str]) -> tuple[str, ...]:
    """A brake's reasons, as Redis gives them, in one order."""
    return tuple(sorted(member.decode() if isinstance(member, bytes) else member for member in members))


def words(reasons: Sequence[str]) -> str:
    """Why nothing is started, without the codes."""
    return "; ".join(reason.partition(": ")[2] for reason in reasons)
