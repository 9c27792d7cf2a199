"""Batches over HTTP, on a real Valkey and a directory store: what is taken, what is refused, and what that leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis

from api.app import create_app
from api.settings import GatewaySettings
from serinette.names import Keys, Lane
from serinette.store import Store
from tests import servers
from tests.gateways import problem

SONG = {"prompt": "jazz piano, smooth", "duration_s": 15}
JSONL = {"Content-Type": "application/jsonl"}


@pytest.fixture(scope="module")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server.connection_url


@pytest.fixture
def redis_url(valkey_url: str) -> str:
    """This module's own Valkey, emptied."""
    with Redis.from_url(valkey_url) as client:
        client.flushdb()
    return valkey_url


@pytest.fixture
def app(redis_url: str, file_store_url: str) -> FastAPI:
    return create_app(
        GatewaySettings.model_validate({"redis_url": redis_url, "store_url": file_store_url, "max_batches": 3})
    )


@pytest.fixture
def store(app: FastAPI) -> Store:
    found: Store = app.state.parts.store
    return found


@pytest.fixture
async def client(app: FastAPI) -> Any:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
        yield opened


def lines(*specs: object) -> bytes:
    return b"".join(spec if isinstance(spec, bytes) else json.dumps(spec).encode() + b"\n" for spec in specs)


async def test_jsonl(client: httpx.AsyncClient, redis: Redis, store: Store) -> None:
    body = lines(*({**SONG, "custom_id": f"song {number}"} for number in range(600)))
    answer = await client.post("/v1/batches?name=moods&label=album=blue", content=body, headers=JSONL)
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert answer.headers["Location"] == f"/v1/batches/{batch['id']}"
    assert (batch["status"], batch["name"], batch["labels"]) == ("in_progress", "moods", {"album": "blue"})
    assert batch["request_counts"]["total"] == 600
    assert (await client.get(answer.headers["Location"])).json() == batch
    assert (await client.get("/v1/batches")).json() == {"batches": [batch]}
    assert len(list(store.list(f"batches/default/{batch['id']}"))) == 4  # three parts of the input, and the header
    assert redis.llen(Keys().waiting("default", Lane.LOW)) == 0  # nothing is released by a gateway
    told = (await client.get(f"/v1/batches/{batch['id']}/lines?first=249&limit=250")).json()["lines"]
    assert [(line["line"], line["status"]) for line in told] == [(249, "pending"), (250, "pending")]
