"""What tenants may use and what they have used, for them to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from redis import asyncio as redis_asyncio

from api.answering import answering
from serinette.credentials import Limits
from serinette.names import Keys
from serinette.usage import Day, day_number, day_of


@dataclass(frozen=True, slots=True)
class Accounts:
    """Usage and limits on one Redis. `declared` has a tenant's limits where a file does; Redis has the others'."""

    redis: redis_asyncio.Redis
    keys: Keys
    declared: Callable[[str], Limits | None]

    async def days(self, tenant: str, days: Sequence[date]) -> list[Day]:
        """What a tenant's jobs took on those UTC days. Raises QueueUnavailable."""
        with answering():
            async with self.redis.pipeline(transaction=False) as pipe:
                for day in days:
                    pipe.hgetall(self.keys.usage(tenant, day_number(day)))
                found = await pipe.execute()
        return [day_of(day, raw) for day, raw in zip(days, found, strict=True)]

    async def limits(self, tenant: str) -> Limits:
        """What a tenant may use. Raises QueueUnavailable."""
        with answering():
            found: Any = await self.redis.hget(self.keys.tenants, tenant)
        return self.declared(tenant) or (Limits.model_validate_json(found) if found else Limits())
