"""GET /v1/operator: who may read it, and what it says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from api.settings import GatewaySettings
from serinette import counters, credentials
from serinette.credentials import Limits
from serinette.job import WaitingCode, now
from serinette.names import Keys, Right
from serinette.presence import Presence, WorkerStage, announce
from serinette.usage import day_number
from tests.unit.tenants import SONG, bearing, credential_of, key_of, serving, settings_of

KEYS = Keys()
OPERATOR = (Right.OPERATOR_READ,)


@pytest.fixture
def settings(redis_url: str, file_store_url: str) -> GatewaySettings:
    return settings_of(redis_url, file_store_url)


@pytest.fixture
async def http(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings) as (_, client):
        yield client


async def test_only_a_key_with_the_right_reads_it(http: httpx.AsyncClient, redis: Redis) -> None:
    plain, operator = key_of(redis, "acme"), key_of(redis, "ops", rights=OPERATOR)
    refused = await http.get("/v1/operator", headers=bearing(plain))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "operator:read" in refused.json()["detail"]
    assert (await http.get("/v1/operator")).status_code == 401
    assert (await http.get("/v1/operator", headers=bearing(operator))).status_code == 200
    rights = [(await http.get("/v1/usage", headers=bearing(key))).json()["rights"] for key in (plain, operator)]
    assert rights == [[], ["operator:read"]]
    job = (await http.post("/v1/jobs", json=SONG, headers=bearing(plain))).json()["id"]
    for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("POST", "/links"), ("POST", "/share")]:
        answer = await http.request(method, f"/v1/jobs/{job}{path}", headers=bearing(operator))
        assert answer.status_code == 404, "the right reads numbers, and no tenant's jobs"
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert (await http.request(method, "/v1/operator", headers=bearing(operator))).status_code == 405
    credentials.save(redis, KEYS, credential_of(operator, redis).model_copy(update={"rights": ()}))
    assert (await http.get("/v1/operator", headers=bearing(operator))).status_code == 403


async def test_it_shows_pools_lanes_failures_and_usage(http: httpx.AsyncClient, redis: Redis) -> None:
    acme, operator = key_of(redis, "acme"), key_of(redis, "ops", rights=OPERATOR)
    credentials.set_limits(redis, KEYS, "limited", Limits(queued_jobs=1))
    for lane in ("high", "low", "low"):
        await http.post("/v1/jobs", json={**SONG, "lane": lane}, headers=bearing(acme))
    oldest = min(redis.zrange(KEYS.live, 0, 0, withscores=True), key=lambda each: each[1])[0]
    redis.zincrby(KEYS.live, -100, oldest)
    for code, times in (("timeout", 1), ("worker_lost", 2)):
        for _ in range(times):
            counters.count(redis, KEYS, counters.JOBS_ENDED, "default", "failed", code)
    counters.count(redis, KEYS, counters.JOBS_ENDED, "default", "succeeded", "")
    redis.hset(KEYS.usage("acme", day_number(now().date())), mapping={"succeeded": 3, "gpu_s": 12.5})
    redis.sadd(KEYS.brake("default"), "store: it does not answer")
    worker = {"pool": "default", "stage": WorkerStage.LOADING, "slots": 2, "started_at": now()}
    for name in ("one", "two"):
        announce(redis, KEYS, Presence(name=name, trouble=WaitingCode.DISK, **worker))

    view = (await http.get("/v1/operator", headers=bearing(operator))).json()
    (pool,) = view["pools"]
    assert [(lane["lane"], lane["waiting"]) for lane in pool["lanes"]] == [("high", 1), ("normal", 0), ("low", 2)]
    assert pool["lanes"][1]["oldest_s"] is None
    assert 0 <= pool["lanes"][2]["oldest_s"] < 50
    assert 99 < pool["lanes"][0]["oldest_s"] < 150
    assert pool["failures"] == [{"code": "worker_lost", "jobs": 2}, {"code": "timeout", "jobs": 1}]
    assert (pool["succeeded"], pool["waiting"]) == (1, 3)
    assert [each["name"] for each in pool["workers"]] == ["one", "two"]
    assert pool["brake"] == ["store: it does not answer"]
    assert pool["waiting_for"].startswith("room on the disk of a worker")
    names = [tenant["tenant"] for tenant in view["tenants"]]
    assert names == ["acme", "default", "limited", "ops"], "most GPU-seconds first, then by name"
    assert (view["tenants"][0]["total"]["gpu_s"], view["tenants"][0]["total"]["jobs"]) == (12.5, 3)
    assert view["tenants"][2]["limits"]["queued_jobs"] == 1
    before = (await http.get("/v1/operator?until=2020-01-31", headers=bearing(operator))).json()
    assert (before["since"], before["until"]) == ("2020-01-02", "2020-01-31")
    assert {tenant["total"]["jobs"] for tenant in before["tenants"]} == {0}
    wide = await http.get("/v1/operator?since=2020-01-01&until=2020-12-31", headers=bearing(operator))
    assert (wide.status_code, wide.json()["field"]) == (422, "since")


async def test_a_declared_key_may_have_the_right(redis_url: str, file_store_url: str, tmp_path: Path) -> None:
    key, kept = credentials.new_key("declared", rights=OPERATOR)
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"tenants": {"other": {}}, "keys": [kept.model_dump(mode="json")]}))
    async with serving(settings_of(redis_url, file_store_url, keys_file=file)) as (_, http):
        view = (await http.get("/v1/operator", headers=bearing(key))).json()
    assert [tenant["tenant"] for tenant in view["tenants"]] == ["declared", "default", "other"]


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1", 200), ("0.0.0.0", 403)])  # nothing listens
async def test_without_keys_the_machines_own_user_reads_it(settings: GatewaySettings, host: str, status: int) -> None:
    open_to_all = settings.model_copy(update={"auth": False, "host": host, "allow_anyone": host == "0.0.0.0"})
    async with serving(open_to_all) as (_, http):
        assert (await http.get("/v1/operator")).status_code == status
