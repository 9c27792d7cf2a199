"""GET /v1/workers, and what a job is answered that it waits for, through the gateway on a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from redis import Redis

from api.app import create_app
from api.settings import GatewaySettings
from serinette import brake
from serinette.job import now
from serinette.names import Keys
from serinette.pools import PoolFacts
from serinette.presence import ColdStart, Holdup, Pace, Presence, WorkerStage, announce, record_pace, report_holdups
from tests.gateways import problem
from tests.unit.queue_harness import model

TURBO = PoolFacts(name="turbo", model="s3://models/turbo", max_workers=4, longest_s=540)
BASE = PoolFacts(name="base", model="s3://models/base", min_workers=1, max_workers=1)
NONE = "a worker: none is up in pool turbo"


@pytest.fixture
async def http(redis_url: str, file_store_url: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = GatewaySettings.model_validate(
        {"redis_url": redis_url, "store_url": file_store_url, "pools": (TURBO, BASE), "pool": "base"}
    )
    app = create_app(settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client


async def turbo(http: httpx.AsyncClient) -> dict[str, Any]:
    pools = {pool["name"]: pool for pool in (await http.get("/v1/workers")).json()["pools"]}
    assert set(pools) == {"base", "turbo"}
    found: dict[str, Any] = pools["turbo"]
    return found


async def test_a_pool_is_followed_from_zero_to_a_ready_worker(
    http: httpx.AsyncClient, redis: Redis, keys: Keys
) -> None:
    pool = await turbo(http)
    assert (pool["model"], pool["min_workers"], pool["max_workers"], pool["pods"]) == ("turbo", 0, 4, None)
    assert (pool["waiting"], pool["waiting_for"], pool["brake"], pool["workers"]) == (0, None, [], [])

    job = (await http.post("/v1/jobs", json={"prompt": "jazz", "model": "turbo"})).json()
    assert (job["pool"], job["timeout_s"]) == ("turbo", 540)
    assert job["waiting_for"] == f"{NONE}, which scales from zero"

    async def both() -> set[str | None]:
        """What the job and the pool are said to wait for."""
        pool = (await turbo(http))["waiting_for"]  # as it is now; the job's figures are of a quarter of a second ago
        return {(await http.get(f"/v1/jobs/{job['id']}")).json()["waiting_for"], pool}

    assert await both() == {f"{NONE}, which scales from zero"}
    report_holdups(redis, keys, {"turbo": Holdup(pods=1, words="its node pulls the image")})
    assert await both() == {f"{NONE}; its node pulls the image"}
    assert (await turbo(http))["pods"] == 1
    brake.set_reasons(redis, keys, "turbo", ["load: no checkpoint"])
    assert await both() == {f"{NONE}, and no more are started: no checkpoint"}
    assert (await turbo(http))["brake"] == ["load: no checkpoint"]
    brake.set_reasons(redis, keys, "turbo", [])

    record_pace(redis, keys, "turbo", 1000, of=Pace.COLD_START)
    started_at = now() - timedelta(seconds=500)
    worker = Presence(name="w-1", pool="turbo", stage=WorkerStage.LOADING, slots=2, started_at=started_at)
    announce(redis, keys, worker)
    (words,) = await both()
    assert words and words.startswith("the model, which is loading: 5")
    start = ColdStart(node_s=30, load_s=12.5)
    ready = {"stage": WorkerStage.READY, "model": model("turbo"), "cold_start": start}
    announce(redis, keys, worker.model_copy(update=ready))
    pool = await turbo(http)
    (start,) = [each["cold_start"] for each in pool["workers"]]
    assert (start["node_s"], start["load_s"], start["compile_s"]) == (30, 12.5, None)
    assert pool["waiting_for"] is None
    assert [(each["name"], each["stage"]) for each in pool["workers"]] == [("w-1", "ready")]


async def test_what_the_pools_cannot_do_is_refused_before_anything_is_stored(
    http: httpx.AsyncClient, redis: Redis
) -> None:
    unknown = problem(await http.post("/v1/jobs", json={"prompt": "jazz", "model": "huge"}))
    assert (unknown["status"], unknown["field"]) == (422, "model")
    assert "published here are base, turbo" in unknown["detail"]
    long = problem(await http.post("/v1/jobs", json={"prompt": "jazz", "model": "turbo", "timeout_s": 541}))
    assert (long["status"], long["field"]) == (422, "timeout_s")
    assert not redis.keys("rq:serinette:*")


async def test_models_of_pools_at_zero_can_be_asked_for_in_both_dialects(
    http: httpx.AsyncClient, redis: Redis, keys: Keys
) -> None:
    base, turbo = (await http.get("/v1/models")).json()["models"]
    assert (base["name"], base["pool"], base["default"], base["workers"]) == ("base", "base", True, 0)
    assert (turbo["name"], turbo["default"], turbo["revision"], turbo["tasks"]) == ("turbo", False, None, [])
    order = (await http.post("/release_task", json={"prompt": "jazz", "model": "turbo"})).json()["data"]
    assert order["warnings"] == []
    assert (await http.get(f"/v1/jobs/{order['task_id']}")).json()["pool"] == "turbo"

    worker = Presence(name="w", pool="turbo", stage=WorkerStage.READY, slots=1, model=model("turbo"), started_at=now())
    announce(redis, keys, worker)
    _, turbo = (await http.get("/v1/models")).json()["models"]
    assert (turbo["workers"], turbo["defaults"]["steps"]) == (1, 8)
