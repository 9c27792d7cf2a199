"""What is open when a key ends: waits and streams end with it. And what a store that hangs does not hold up."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis

from api import events
from api.queue import keyed_job_id
from serinette import credentials
from serinette.errors import StoreUnavailable
from serinette.names import Keys
from serinette.store import Store
from serinette.webhook_targets import Targets
from tests.gateways import problem
from tests.receivers import SECRET
from tests.unit.tenants import SONG, bearing, credential_of, key_of, serving, settings_of


@pytest.fixture
async def served(
    redis_url: str, file_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    monkeypatch.setattr(events, "_RECHECK_S", 0.1)
    async with serving(settings_of(redis_url, file_store_url, max_wait_s=120)) as both:
        yield both


def revoke(redis: Redis, key: str) -> None:
    credentials.revoke(redis, Keys(), credential_of(key, redis).id)


async def until_watched(app: FastAPI, listeners: int = 1) -> None:
    watches = app.state.parts.events._watches
    async with asyncio.timeout(60):
        while sum(len(watch.listeners) for watch in watches.values()) < listeners:  # noqa: ASYNC110  # no event says so
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["/v1/jobs/{id}", "/result/{id}?wait=100"])
async def test_a_wait_ends_with_its_key(served: tuple[FastAPI, httpx.AsyncClient], redis: Redis, path: str) -> None:
    app, http = served
    key = key_of(redis, "acme")
    job_id = (await http.post("/v1/jobs", json=SONG, headers=bearing(key))).json()["id"]
    headers = {**bearing(key), "Prefer": "wait=100"}
    waiting = asyncio.create_task(http.get(path.format(id=job_id), headers=headers, timeout=120))
    await until_watched(app)
    assert not waiting.done()
    revoke(redis, key)
    async with asyncio.timeout(60):
        assert (await waiting).status_code == 401


async def test_a_stream_ends_with_its_key_and_others_go_on(
    served: tuple[FastAPI, httpx.AsyncClient], redis: Redis
) -> None:
    app, http = served
    key, other = key_of(redis, "acme"), key_of(redis, "acme")
    job_id = (await http.post("/v1/jobs", json=SONG, headers=bearing(key))).json()["id"]
    link = (await http.post(f"/v1/jobs/{job_id}/links", headers=bearing(key))).json()["events"]
    streams = [
        asyncio.create_task(http.get(path, headers=headers, timeout=120))
        for path, headers in ((f"/v1/jobs/{job_id}/events", bearing(key)), (link, {}))
    ]
    going_on = asyncio.create_task(http.get(f"/v1/jobs/{job_id}/events", headers=bearing(other), timeout=120))
    await until_watched(app, listeners=3)
    revoke(redis, key)
    async with asyncio.timeout(60):
        for stream in streams:
            assert (await stream).text.count("event: ") == 1, "the job as it stands, and then the end"
    assert not going_on.done()
    (await http.post(f"/v1/jobs/{job_id}/cancel", headers=bearing(other))).raise_for_status()
    async with asyncio.timeout(60):
        assert "event: canceled" in (await going_on).text


async def test_jobs_that_redis_forgot_wait_for_a_hanging_store_in_threads_of_their_own(
    served: tuple[FastAPI, httpx.AsyncClient], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, http = served
    answers = threading.Event()

    def hang(*_: object) -> bytes:
        assert answers.wait(120)
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(Store, "get", hang)
    http.headers.update(bearing(key_of(redis, "acme")))
    calls = ["get /v1/jobs/{}", "post /v1/jobs/{}/cancel", "get /v1/jobs/{}/audio", "get /status/{}"]
    asked = [calls[number % 4].format(uuid.uuid4()).split() for number in range(120)]
    hanging = [asyncio.create_task(http.request(method, path, timeout=120)) for method, path in asked]
    recalls = app.state.parts.queue.recalls
    async with asyncio.timeout(60):
        while sum(request.done() for request in hanging) + recalls.waiting < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    try:
        job = (await http.post("/v1/jobs", json=SONG, timeout=60)).json()
        assert (await http.get(f"/v1/jobs/{job['id']}", timeout=60)).status_code == 200
        assert (await http.get("/v1/queue", timeout=60)).status_code == 200
        assert not all(request.done() for request in hanging)
    finally:
        answers.set()
    responses = await asyncio.gather(*hanging)
    assert {answer.status_code for answer in responses} == {503}
    assert any(
        "slow to answer" in problem(answer)["detail"] for answer in responses if answer.url.path.startswith("/v1/")
    )


async def test_batches_wait_for_a_hanging_store_in_threads_of_their_own(
    served: tuple[FastAPI, httpx.AsyncClient], redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, http = served
    http.headers.update(bearing(key_of(redis, "acme")))
    batch = (await http.post("/v1/batches", json={"specs": [SONG]})).json()["id"]
    answers = threading.Event()

    def hang(*_: object) -> bytes:
        assert answers.wait(120)
        raise StoreUnavailable("the store does not answer")

    for name in ("get", "put", "put_if_absent", "delete_prefix"):
        monkeypatch.setattr(Store, name, hang)
    unknown = "batch-" + "0" * 32
    calls = [f"get /v1/batches/{unknown}", f"delete /v1/batches/{unknown}", f"get /v1/batches/{batch}/lines"]
    calls += [f"get /v1/batches/{unknown}/{name}" for name in ("output.jsonl", "errors.jsonl", "songs.zip")]
    asked = [calls[number % len(calls)].split() for number in range(120)]
    hanging = [asyncio.create_task(http.request(method, path, timeout=120)) for method, path in asked]
    made = [asyncio.create_task(http.post("/v1/batches", json={"specs": [SONG]}, timeout=120)) for _ in range(4)]
    threads = app.state.parts.batch_threads.store
    async with asyncio.timeout(60):
        while sum(request.done() for request in (*hanging, *made)) + threads.waiting < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    try:
        assert (await http.post("/v1/jobs", json=SONG, timeout=60)).status_code == 202
        assert (await http.get(f"/v1/batches/{batch}", timeout=60)).json()["status"] == "in_progress"
        assert len((await http.get("/v1/batches", timeout=60)).json()["batches"]) == 1
        assert not all(request.done() for request in hanging)
    finally:
        answers.set()
    assert {answer.status_code for answer in await asyncio.gather(*hanging, *made)} == {503}


async def test_webhooks_wait_for_a_hanging_resolver_in_threads_of_their_own(
    redis_url: str, redis: Redis, file_store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def hang(*_: object) -> None:
        assert answers.wait(120)

    monkeypatch.setattr(Targets, "check", hang)
    settings = settings_of(redis_url, file_store_url, webhook_secret=SECRET)
    async with serving(settings) as (app, http):
        http.headers.update(bearing(key_of(redis, "acme")))
        song = {**SONG, "webhook": "https://slow.example/"}
        hanging = [asyncio.create_task(http.post("/v1/jobs", json=song, timeout=120)) for _ in range(120)]
        threads = app.state.parts.queue.webhook_threads
        async with asyncio.timeout(60):
            while sum(request.done() for request in hanging) + threads.waiting < 110:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        try:
            assert (await http.post("/v1/jobs", json=SONG, timeout=60)).status_code == 202
            assert not all(request.done() for request in hanging)
        finally:
            answers.set()
        assert {answer.status_code for answer in await asyncio.gather(*hanging)} == {202, 503}


def test_a_secret_makes_ids_that_cannot_be_computed_without_it() -> None:
    ids = {keyed_job_id(tenant, "key", secret) for tenant in ("a", "b") for secret in (None, "s" * 16, "t" * 16)}
    assert len(ids) == 6
    assert keyed_job_id("a", "key", "s" * 16) in ids
