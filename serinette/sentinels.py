"""Clients of the primary that Redis's sentinels know, wherever it is by now; serinette/settings.py makes them.

After a failover a connection to what was the primary fails its next command, once, and then finds the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio import sentinel as sentinel_asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

# redis-py types neither of them.
_SENTINEL: Any = Sentinel
_SENTINEL_ASYNC: Any = sentinel_asyncio.Sentinel


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Where they are (host, port), what they call the primary, and redis-py's options of connections to themselves."""

    addresses: Sequence[tuple[str, int]]
    primary: str
    options: Mapping[str, Any]

    def client(self, **options: object) -> Redis:
        """A blocking client of the primary; `options` are redis-py's of connections to it."""
        own = {**self.options, "retry": Retry(NoBackoff(), 0)}  # one that is away is not waited for: there are others
        made: Redis = _SENTINEL(self.addresses, sentinel_kwargs=own).master_for(self.primary, **options)
        return made

    def client_async(self, **options: object) -> redis_asyncio.Redis:
        """A client for the event loop; `options` may hold those of a BlockingConnectionPool, too."""
        own = {**self.options, "retry": AsyncRetry(NoBackoff(), 0)}
        sentinels = _SENTINEL_ASYNC(self.addresses, sentinel_kwargs=own)
        pool: Any = _BlockingSentinelPool
        return redis_asyncio.Redis.from_pool(pool(self.primary, sentinels, **options))


class _BlockingSentinelPool(sentinel_asyncio.SentinelConnectionPool, redis_asyncio.BlockingConnectionPool):
    """Few connections, for which callers wait, all to the primary; redis-py has the two only apart."""

    async def aclose(self) -> None:
        """Close them, and those to the sentinels."""
        await super().aclose()
        for client in self.sentinel_manager.sentinels:
            await client.aclose()
