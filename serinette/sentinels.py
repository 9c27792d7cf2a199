"""Redis clients that find the current primary by sentinels; serinette/settings.py makes them.

redis-py asks the sentinels when it takes a connection from the pool, but not when it reconnects during a command, which
would then go to the former primary. Our connections ask at each connect.
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
from redis.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection

# redis-py types neither of them.
_SENTINEL: Any = Sentinel
_SENTINEL_ASYNC: Any = sentinel_asyncio.Sentinel


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Addresses of sentinels (host, port), their name of the primary, and redis-py's options of connections to them."""

    addresses: Sequence[tuple[str, int]]
    primary: str
    options: Mapping[str, Any]

    def client(self, **options: object) -> Redis:
        """A blocking client of the primary; `options` are redis-py's for connections to it."""
        own = {**self.options, "retry": Retry(NoBackoff(), 0)}  # without retries, because the next sentinel is asked
        kind = _TlsConnection if options.get("ssl") else _Connection
        sentinels = _SENTINEL(self.addresses, sentinel_kwargs=own)
        made: Redis = sentinels.master_for(self.primary, connection_class=kind, **options)
        return made

    def client_async(self, **options: object) -> redis_asyncio.Redis:
        """A client for the event loop; `options` may hold those of a BlockingConnectionPool, too."""
        own = {**self.options, "retry": AsyncRetry(NoBackoff(), 0)}
        sentinels = _SENTINEL_ASYNC(self.addresses, sentinel_kwargs=own)
        kind = _AsyncTlsConnection if options.get("ssl") else _AsyncConnection
        pool: Any = _BlockingSentinelPool
        return redis_asyncio.Redis.from_pool(pool(self.primary, sentinels, connection_class=kind, **options))


class _Connection(SentinelManagedConnection):
    """A connection to the current primary."""

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if not self.is_connected:
            self.host, self.port = self.connection_pool.get_master_address()
        super().connect_check_health(check_health, retry_socket_connect)


class _TlsConnection(_Connection, SentinelManagedSSLConnection):
    """The same behind TLS."""


class _AsyncConnection(sentinel_asyncio.SentinelManagedConnection):
    """A connection to the current primary."""

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if not self.is_connected:
            self.host, self.port = await self.connection_pool.get_master_address()
        await super().connect_check_health(check_health, retry_socket_connect)


class _AsyncTlsConnection(_AsyncConnection, sentinel_asyncio.SentinelManagedSSLConnection):
    """The same behind TLS."""


class _BlockingSentinelPool(sentinel_asyncio.SentinelConnectionPool, redis_asyncio.BlockingConnectionPool):
    """A blocking connection pool of sentinels; redis-py has only separate classes for the two."""

    async def aclose(self) -> None:
        """Close all connections, including those to the sentinels."""
        await super().aclose()
        for client in self.sentinel_manager.sentinels:
            await client.aclose()
