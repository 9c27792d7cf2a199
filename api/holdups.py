"""What the cluster says holds a pool's workers: told by maintenance, which sees it, for gateways, which do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis

from serinette.names import Keys

# Told anew every few seconds; what is older is not known.
HOLDUP_TTL_S = 60


class Holdup(BaseModel):
    """One pool."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pods: int = Field(0, description="Its worker pods, but for those that leave.")
    words: str = Field("", description="What holds the pod that is furthest along; empty when nothing does.")
    stuck: int = Field(0, description="Pods whose containers the cluster fails to start, again and again.")
    stuck_words: str = Field("", description="Why.")


def tell(redis: Redis, keys: Keys, holdups: Mapping[str, Holdup]) -> None:
    """Replace what was told before."""
    with redis.pipeline(transaction=True) as pipe:
        pipe.delete(keys.holdups)
        if holdups:
            pipe.hset(keys.holdups, mapping={pool: holdup.model_dump_json() for pool, holdup in holdups.items()})
            pipe.expire(keys.holdups, HOLDUP_TTL_S)
        pipe.execute()


def parse(raw: Mapping[Any, Any]) -> dict[str, Holdup]:
    """The hash as `HGETALL` gives it; empty without a cluster."""
    return {pool.decode(): Holdup.model_validate_json(text) for pool, text in raw.items()}
