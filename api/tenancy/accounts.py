"""What tenants may use and what they have used, for them to read. Blocking; routes call it from threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date

from redis import Redis
from redis.exceptions import RedisError

from serinette.credentials import Limits
from serinette.errors import QueueUnavailable
from serinette.names import Keys
from serinette.usage import Day, read_days


@dataclass(frozen=True, slots=True)
class Accounts:
    """Usage and limits on one Redis. `declared` tells a tenant's limits where a file does; Redis tells the others'."""

    redis: Redis
    keys: Keys
    declared: Callable[[str], Limits | None]

    def days(self, tenant: str, days: Sequence[date]) -> list[Day]:
        """What a tenant's jobs took on those UTC days. Raises QueueUnavailable."""
        try:
            return read_days(self.redis, self.keys, tenant, days)
        except RedisError as error:
            raise _unavailable() from error

    def limits(self, tenant: str) -> Limits:
        """What a tenant may use. Raises QueueUnavailable."""
        try:
            text = self.redis.hget(self.keys.tenants, tenant)
        except RedisError as error:
            raise _unavailable() from error
        return self.declared(tenant) or (Limits.model_validate_json(text) if text else Limits())


def _unavailable() -> QueueUnavailable:
    return QueueUnavailable("usage cannot be read, for the queue does not answer; try again")
