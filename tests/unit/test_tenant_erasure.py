"""A tenant is erased: nothing of it is left in Redis or in the store, and nothing of another is gone."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis import Redis

from api.settings import GatewaySettings
from serinette.credentials import Limits
from serinette.errors import Conflict
from serinette.store import Store
from serinette.tenant_erasure import Erased, erase_tenant
from tests.gateways import HandSlot
from tests.receivers import SECRET
from tests.unit.sounds import wav
from tests.unit.tenants import SONG, bearing, key_of, serving, settings_of

pytestmark = pytest.mark.shared_valkey


@pytest.fixture
def settings(redis_url: str, file_store_url: str) -> GatewaySettings:
    return settings_of(redis_url, file_store_url, webhook_secret=SECRET, webhook_networks=["127.0.0.0/8"])


@pytest.fixture
async def http(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings) as (_, client):
        yield client


async def used(http: httpx.AsyncClient, slot: HandSlot, key: str, tenant: str) -> list[str]:
    """What a tenant leaves: an upload, a song, a canceled job with a webhook to deliver, one that waits, a batch."""
    headers = bearing(key)
    (await http.post("/v1/uploads", content=wav(bytes(48_000)), headers=headers)).raise_for_status()
    ids = []
    for webhook in (None, "http://127.0.0.1:9/x", None):
        answer = await http.post("/v1/jobs", json={**SONG, "webhook": webhook}, headers=headers)
        ids.append(answer.json()["id"])
    slot.claim(ids[0])
    slot.succeed(ids[0], [b"song"], tenant)
    slot.record(ids[0])
    (await http.post(f"/v1/jobs/{ids[1]}/cancel", headers=headers)).raise_for_status()
    (await http.post("/v1/batches", json={"specs": [SONG, SONG]}, headers=headers)).raise_for_status()
    (await http.post(f"/v1/jobs/{ids[0]}/share", headers=headers)).raise_for_status()
    return ids


def traces(redis: Redis, *names: str) -> list[str]:
    """Keys of Redis in whose name or content one of these stands."""
    found = []
    names_in_redis: Any = list(redis.scan_iter(count=1_000))
    for key in names_in_redis:
        kind: Any = redis.type(key)
        read: dict[str, Any] = {
            "string": redis.get,
            "hash": redis.hgetall,
            "set": redis.smembers,
            "zset": lambda name: redis.zrange(name, 0, -1),
            "list": lambda name: redis.lrange(name, 0, -1),
            "stream": redis.xrange,
        }
        shown = f"{key!r} {read[kind.decode()](key)!r}"
        if any(re.search(rf"{name}(?!-)", shown) for name in names) and b":erased:" not in key:
            found.append(shown)
    return found


def finish_batches(redis: Redis, settings: GatewaySettings, tenant: str) -> None:
    """As a controller ends a batch that is canceled."""
    batch_ids: Any = redis.zrange(settings.keys.tenant_batches(tenant), 0, -1)
    for batch_id in batch_ids:
        redis.hset(settings.keys.batch(batch_id.decode()), "status", "canceled")


async def test_nothing_of_it_is_left_and_all_of_another(
    http: httpx.AsyncClient, redis: Redis, settings: GatewaySettings
) -> None:
    store = Store.open(settings)
    slot = HandSlot(redis, store)
    # One tenant's name begins with the other's, and so do their keys in Redis and in the store.
    key, other = key_of(redis, "acme-gone", Limits(jobs_in_flight=50)), key_of(redis, "acme-gone-not")
    ids = await used(http, slot, key, "acme-gone")
    kept = await used(http, slot, other, "acme-gone-not")
    with pytest.raises(Conflict, match="1 batches of tenant acme-gone are canceled and have not ended"):
        erase_tenant(redis, store, settings, "acme-gone", timeout_s=0)
    assert (await http.get("/v1/jobs", headers=bearing(key))).status_code == 401
    finish_batches(redis, settings, "acme-gone")
    erased = erase_tenant(redis, store, settings, "acme-gone", timeout_s=0)
    assert (erased.jobs, erased.batches) == (3, 1)
    assert erased.objects >= 5
    assert traces(redis, "acme-gone", *ids) == []
    for kind in ("songs", "uploads", "batches"):
        assert not list(store.list(f"{kind}/acme-gone"))
        assert list(store.list(f"{kind}/acme-gone-not")), kind
    assert erase_tenant(redis, store, settings, "acme-gone", timeout_s=0) == Erased(0, 0, 0, 0)
    jobs = (await http.get("/v1/jobs", headers=bearing(other))).json()["jobs"]
    assert {job["id"] for job in jobs} == set(kept)
    assert (await http.get(f"/v1/jobs/{kept[0]}/audio", headers=bearing(other))).status_code == 200
