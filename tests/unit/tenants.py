"""A gateway in this process that asks for keys, with tenants to send as."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from redis import Redis

from api.app import create_app
from api.dialects import DIALECTS
from api.dialects.dialect import Dialect
from api.settings import GatewaySettings
from serinette import credentials
from serinette.credentials import Credential, Limits
from serinette.names import Keys

SONG = {"prompt": "jazz piano, smooth", "duration_s": 15}


def settings_of(redis_url: str, store_url: str, **settings: Any) -> GatewaySettings:
    """Keys are asked for, and never remembered unless `settings` say otherwise."""
    given = {"redis_url": redis_url, "store_url": store_url, "auth": True, "key_cache_s": 0, "max_wait_s": 5}
    return GatewaySettings.model_validate({**given, **settings})


def key_of(redis: Redis, tenant: str, limits: Limits | None = None, **credential: Any) -> str:
    """A new key in Redis, for a tenant with these limits."""
    key, kept = credentials.new_key(tenant, **credential)
    credentials.save(redis, Keys(), kept)
    if limits:
        credentials.set_limits(redis, Keys(), tenant, limits)
    return key


def credential_of(key: str, redis: Redis) -> Credential:
    """What is kept of a key."""
    key_id = credentials.id_of(key)
    assert key_id
    return credentials.find(redis, Keys(), key_id)


def bearing(key: str) -> dict[str, str]:
    """Headers that send a key."""
    return {"Authorization": f"Bearer {key}"}


@asynccontextmanager
async def serving(
    settings: GatewaySettings, dialects: Sequence[Dialect] = DIALECTS
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """The application and a client without a key."""
    app = create_app(settings, dialects)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield app, http
