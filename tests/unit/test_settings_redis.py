"""Credentials of Redis beside its URL, as a Secret holds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from redis import Redis, SSLConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from serinette.settings import SharedSettings, connect_redis, connect_redis_async
from tests import servers
from tests.processes import eventually

# What a URL could hold only escaped, and what KEDA wants as it is.
PASSWORD = "p@ss/w:rd%20#?&"


@pytest.fixture
def guarded_url(redis: Redis, redis_url: str) -> str:
    redis.acl_setuser("singer", enabled=True, passwords=[f"+{PASSWORD}"], categories=["+@all"], keys=["*"])
    redis.config_set("requirepass", PASSWORD)
    return redis_url


@pytest.mark.parametrize("username", [None, "singer"])
async def test_a_password_of_any_characters_opens_both_clients(guarded_url: str, username: str | None) -> None:
    settings = SharedSettings(
        redis_url=SecretStr(guarded_url), redis_username=username, redis_password=SecretStr(PASSWORD)
    )
    with connect_redis(settings) as client:
        assert client.acl_whoami() == (username or "default")
    async with connect_redis_async(settings) as client_async:
        assert await client_async.acl_whoami() == (username or "default")


def test_a_wrong_password_is_refused_and_none_is_too(guarded_url: str) -> None:
    wrong = SharedSettings(redis_url=SecretStr(guarded_url), redis_password=SecretStr("guess"))
    with pytest.raises(AuthenticationError), connect_redis(wrong) as client:
        client.ping()
    with (
        pytest.raises((AuthenticationError, ResponseError)),
        connect_redis(SharedSettings(redis_url=SecretStr(guarded_url))) as client,
    ):
        client.ping()


# -- a primary that sentinels know


@pytest.fixture
def replica(redis: Redis, tmp_path: Path) -> Iterator[Redis]:
    """A Valkey that has what `redis` has."""
    host, port = redis.get_connection_kwargs()["host"], redis.get_connection_kwargs()["port"]
    with servers.valkey(tmp_path / "replica") as server, Redis.from_url(server.connection_url) as client:
        client.replicaof(host, port)
        assert eventually(lambda: client.info("replication")["master_link_status"] == "up")
        yield client


@pytest.fixture
def watched(redis: Redis, replica: Redis, tmp_path: Path) -> Iterator[SharedSettings]:
    """Settings that name one sentinel, which knows both."""
    with servers.sentinel(tmp_path / "sentinel", redis.get_connection_kwargs()["port"], PASSWORD_OF_SENTINEL) as port:
        settings = SharedSettings(
            redis_url=SecretStr("redis://nowhere.invalid/0"),
            redis_sentinels=f"127.0.0.1:1,127.0.0.1:{port}",
            redis_sentinel_password=SecretStr(PASSWORD_OF_SENTINEL),
        )
        with Redis(port=port, password=PASSWORD_OF_SENTINEL) as client:
            assert eventually(lambda: knows_a_replica(client), 60)
            yield settings


PASSWORD_OF_SENTINEL = "of-the-sentinel"


def knows_a_replica(sentinel: Redis) -> bool:
    with suppress(RedisError):
        found = sentinel.sentinel_slaves("mymaster")
        return any(each["flags"] == "slave" for each in found)
    return False


async def test_both_clients_follow_the_primary(watched: SharedSettings, redis: Redis, replica: Redis) -> None:
    first, second = (str(client.get_connection_kwargs()["port"]) for client in (redis, replica))
    sentinel = int((watched.redis_sentinels or "").rpartition(":")[2])
    wrong = watched.model_copy(update={"redis_sentinel_password": SecretStr("guess")})
    with pytest.raises(RedisError), connect_redis(wrong) as stranger:
        stranger.ping()
    async with connect_redis_async(watched) as client_async:
        with connect_redis(watched) as client, Redis(port=sentinel, password=PASSWORD_OF_SENTINEL) as guard:
            assert client.set("counter", 1) and await client_async.incr("counter") == 2
            assert client.config_get("port")["port"] == first
            assert eventually(lambda: replica.get("counter") == b"2")
            guard.sentinel_failover("mymaster")
            assert eventually(lambda: guard.sentinel_get_master_addr_by_name("mymaster")[1] == int(second), 60)
            assert eventually(lambda: servers.demoted(redis), 60)
            # What was the primary refuses, and the same command goes to the new one.
            assert client.incr("counter") == 3
            assert client.config_get("port")["port"] == second
            assert await client_async.incr("counter") == 4
            assert (await client_async.config_get("port"))["port"] == second


@pytest.mark.parametrize("text", ["sentinel", "sentinel:x", "a:1, b:2", ""])
def test_what_is_no_list_of_addresses_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        SharedSettings(redis_sentinels=text)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_tls_reaches_primary_and_sentinels_alike(scheme: str) -> None:
    settings = SharedSettings(
        redis_url=SecretStr(f"{scheme}://nowhere.invalid:6380/3"), redis_sentinels="a:26379", redis_username="singer"
    )
    with connect_redis(settings) as client:
        kwargs = client.get_connection_kwargs()
        assert (kwargs["db"], kwargs["username"]) == (3, "singer")
        pool = client.connection_pool
        assert issubclass(pool.connection_class, SSLConnection) == (scheme == "rediss")
        assert pool.sentinel_manager.sentinel_kwargs.get("ssl", False) == (scheme == "rediss")
