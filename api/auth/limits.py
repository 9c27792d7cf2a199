"""Limits and usage of tenants, and the rate limit of requests over all gateways."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from redis import asyncio as redis_asyncio
from redis.exceptions import ResponseError

from api.auth.keyring import DeclaredFile
from api.outages import queue_errors
from serinette.credentials import Credential, Limits
from serinette.errors import RateLimited
from serinette.jobs.script import NO_DISK
from serinette.names import DEFAULT_TENANT, Keys
from serinette.presence import from_redis_time
from serinette.usage import Day, day_number, day_of

# A gateway reserves a tenth of a second's share of requests at a time, valid for a second: that is one request of a
# limit of a thousand a minute, and saves most calls of Redis where the limit is high.
_SHARES_A_MINUTE = 600
_SHARE_LIFE_S = 1.0

# The generic cell rate algorithm (ITU-T I.371) with a burst of a whole minute: one number says when the allowance is
# full again. Uses Redis's clock, because the gateways' clocks differ. ARGV: requests per minute, how many to reserve
# (one is, if these are too many). Answers how many were reserved, or negative milliseconds to wait.
_SCRIPT = """#!lua flags=allow-oom
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
    """Rate limit of requests, shared by all gateways."""

    def __init__(self, redis: redis_asyncio.Redis, keys: Keys) -> None:
        self._script = redis.register_script(_SCRIPT)
        self._keys = keys
        self._taken: dict[str, tuple[int, float]] = {}  # rest of a tenant's reserved share, and its expiry

    async def count(self, tenant: str, per_minute: int | None) -> None:
        """Count one request.

        Raises:
            RateLimited: the limit is reached; the request is not counted.
            QueueUnavailable: Redis does not answer.
        """
        if per_minute is None:
            return
        left, until_s = self._taken.get(tenant, (0, 0.0))
        if left > 0 and time.monotonic() < until_s:
            self._taken[tenant] = left - 1, until_s
            return
        share = max(1, per_minute // _SHARES_A_MINUTE)
        with queue_errors("requests cannot be counted meanwhile; try again"):
            # Any, because redis-py annotates replies and awaitables alike.
            try:
                taken: Any = await self._script([self._keys.rate(tenant)], [per_minute, share])
            except ResponseError as error:
                if NO_DISK not in str(error):
                    raise
                return  # nothing can be counted, and what the queue holds can still be read
        if taken < 0:
            raise RateLimited(
                f"tenant {tenant} may send {per_minute} requests a minute; wait as long as Retry-After says",
                retry_after_s=-taken / 1000,
            )
        if taken > 1:
            self._taken[tenant] = taken - 1, time.monotonic() + _SHARE_LIFE_S


@dataclass(frozen=True, slots=True)
class Accounts:
    """Usage and limits of tenants: of the declared file, and of Redis for others."""

    redis: redis_asyncio.Redis
    keys: Keys
    declared: DeclaredFile

    async def today(self) -> date:
        """The UTC day to which jobs that end now are counted: Redis's. Raises QueueUnavailable."""
        with queue_errors():
            answer: Any = await self.redis.time()
        return from_redis_time(answer).date()

    async def days(self, tenant: str, days: Sequence[date]) -> list[Day]:
        """Usage of a tenant on each of these UTC days. Raises QueueUnavailable."""
        with queue_errors():
            async with self.redis.pipeline(transaction=False) as pipe:
                for day in days:
                    pipe.hgetall(self.keys.usage(tenant, day_number(day)))
                found = await pipe.execute()
        return [day_of(day, raw) for day, raw in zip(days, found, strict=True)]

    async def everyone(self, days: Sequence[date]) -> dict[str, list[Day]]:
        """Usage on each of these UTC days of every tenant that has a key or limits, and of the default one, by name.
        Raises QueueUnavailable.
        """
        with queue_errors():
            credentials: Any = await self.redis.hvals(self.keys.credentials)
            limited: Any = await self.redis.hkeys(self.keys.tenants)
        keyed = {Credential.model_validate_json(each).tenant for each in credentials}
        names = sorted({DEFAULT_TENANT, *self.declared.tenants(), *limited, *keyed})
        return {name: await self.days(name, days) for name in names}

    async def limits(self, tenant: str) -> Limits:
        """Limits of a tenant. Raises QueueUnavailable."""
        with queue_errors():
            found: Any = await self.redis.hget(self.keys.tenants, tenant)
        return self.declared.limits(tenant) or (Limits.model_validate_json(found) if found else Limits())
