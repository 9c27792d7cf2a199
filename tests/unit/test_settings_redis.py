"""Credentials of Redis beside its URL, as a Secret holds them."""

from __future__ import annotations

import pytest
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import AuthenticationError, ResponseError

from serinette.settings import SharedSettings, connect_redis, connect_redis_async

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
