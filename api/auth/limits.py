"""What tenants may use and what they have used: requests a minute over all gateways, usage, limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from redis import asyncio as redis_asyncio
from redis.exceptions import RedisError

from api.outages import queue_errors
from serinette.credentials import Limits
from serinette.errors import QueueUnavailable, RateLimited
from serinette.names import Keys
from serinette.usage import Day, day_number, day_of

# A gateway takes a tenth of a second's requests at a time, and uses them within a second: of an allowance of a thousand
# a minute that is one, of one that no client reaches it is seldom that Redis is asked.
_SHARES_A_MINUTE = 600
_SHARE_LIFE_S = 1.0

# The generic cell rate algorithm (ITU-T I.371) with a burst of a whole minute: one number says when the allowance is
# full again. Redis's own clock, since the gateways' differ. ARGV: requests per minute, how many to take, or one if
# these are too many. Answers how many were taken, or negative milliseconds to wait.
_SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local function early(count) return full + count * 60000 / tonumber(ARGV[1]) - now - 60000 end
local count = tonumber(ARGV[2])
if early(count) > 1 then count = 1 end
if early(count) > 1 then return -math.ceil(early(count)) end
full = full + count * 60000 / tonumber(ARGV[1])
redis.call('SET', KEYS[1], string.format('%.3f', full), 'PX', math.ceil(full - now))
return count
"""


class RequestRate:
    """Counts requests on one Redis."""

    def __init__(self, redis: redis_asyncio.Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._taken: dict[str, tuple[int, float]] = {}  # what is left of a tenant's last share, and until when

    async def count(self, tenant: str, per_minute: int | None) -> None:
        """Count one request.

        Raises:
            RateLimited: it is one too many; it counts for nothing.
            QueueUnavailable: Redis does not answer.
        """
        if per_minute is None:
            return
        left, until_s = self._taken.get(tenant, (0, 0.0))
        if left > 0 and time.monotonic() < until_s:
            self._taken[tenant] = left - 1, until_s
            return
        share = max(1, per_minute // _SHARES_A_MINUTE)
        try:
            # redis-py annotates an answer or an awaitable alike.
            taken: Any = await self._redis.eval(_SCRIPT, 1, self._keys.rate(tenant), str(per_minute), str(share))
        except RedisError as error:
            raise QueueUnavailable("requests cannot be counted, for the queue does not answer; try again") from error
        if taken < 0:
            raise RateLimited(
                f"tenant {tenant} may send {per_minute} requests a minute; wait as long as Retry-After says",
                retry_after_s=-taken / 1000,
            )
        if taken > 1:
            self._taken[tenant] = taken - 1, time.monotonic() + _SHARE_LIFE_S


@dataclass(frozen=True, slots=True)
class Accounts:
    """Usage and limits on one Redis. `declared` has a tenant's limits where a file does; Redis has the others'."""

    redis: redis_asyncio.Redis
    keys: Keys
    declared: Callable[[str], Limits | None]

    async def days(self, tenant: str, days: Sequence[date]) -> list[Day]:
        """What a tenant's jobs took on those UTC days. Raises QueueUnavailable."""
        with queue_errors():
            async with self.redis.pipeline(transaction=False) as pipe:
                for day in days:
                    pipe.hgetall(self.keys.usage(tenant, day_number(day)))
                found = await pipe.execute()
        return [day_of(day, raw) for day, raw in zip(days, found, strict=True)]

    async def limits(self, tenant: str) -> Limits:
        """What a tenant may use. Raises QueueUnavailable."""
        with queue_errors():
            found: Any = await self.redis.hget(self.keys.tenants, tenant)
        return self.declared(tenant) or (Limits.model_validate_json(found) if found else Limits())
