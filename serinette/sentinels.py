"""Clients of the primary that Redis's sentinels know, wherever it is by now; serinette/settings.py makes them.

redis-py asks the sentinels when it takes a connection from the pool, but not when one that broke is mended in the midst
of a command: that goes on talking to what was the primary. Our connections ask each time.
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
    """Where they are (host, port), what they call the primary, and redis-py's options of connections to themselves."""

    addresses: Sequence[tuple[str, int]]
    primary: str
    options: Mapping[str, Any]

    def client(self, **options: object) -> Redis:
        """A blocking client of the primary; `options` are redis-py's of connections to it."""
        own = {**self.options, "retry": Retry(NoBackoff(), 0)}  # one that is away is not waited for: there are others
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
    """To the primary of the moment."""

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if not self.is_connected:
            self.host, self.port = self.connection_pool.get_master_address()
        super().connect_check_health(check_health, retry_socket_connect)


class _TlsConnection(_Connection, SentinelManagedSSLConnection):
    """The same behind TLS."""


class _AsyncConnection(sentinel_asyncio.SentinelManagedConnection):
    """To the primary of the moment."""

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if not self.is_connected:
            self.host, self.port = await self.connection_pool.get_master_address()
        await super().connect_check_health(check_health, retry_socket_connect)


class _AsyncTlsConnection(_AsyncConnection, sentinel_asyncio.SentinelManagedSSLConnection):
    """The same behind TLS."""


class _BlockingSentinelPool(sentinel_asyncio.SentinelConnectionPool, redis_asyncio.BlockingConnectionPool):
    """Few connections, for which callers wait, all to the primary; redis-py has the two only apart."""

    async def aclose(self) -> None:
        """Close them, and those to the sentinels."""
        await super().aclose()
        for client in self.sentinel_manager.sentinels:
            await client.aclose()
