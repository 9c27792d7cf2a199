"""Quotas and bounds: refused at the right moment, by the right code, with a time to come back, and never in a race."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from redis import Redis

from api.queue import Pool
from api.queue.retry_after import UNKNOWN_S, interval_s, room_for_tenant_s, room_in_lane_s, until_midnight_s
from api.settings import GatewaySettings
from serinette.credentials import Limits
from serinette.job import JobError, JobStatus, now
from serinette.jobs import Outcome, calls
from serinette.names import Keys, Lane
from serinette.presence import Presence, WorkerStage, redis_time
from serinette.store import Store
from serinette.usage import day_number
from tests.gateways import HandSlot, problem
from tests.jobs import Board
from tests.unit.tenants import SONG, bearing, key_of, serving, settings_of

pytestmark = pytest.mark.shared_valkey


@pytest.fixture
def settings(redis_url: str, file_store_url: str) -> GatewaySettings:
    return settings_of(redis_url, file_store_url, max_waiting=5)


@pytest.fixture
async def http(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings) as (_, client):
        yield client


@pytest.fixture
def slot(redis: Redis, settings: GatewaySettings) -> HandSlot:
    return HandSlot(redis, Store.open(settings))


async def submit(http: httpx.AsyncClient, key: str, **song: Any) -> httpx.Response:
    idempotency = {"Idempotency-Key": song.pop("idempotency_key")} if "idempotency_key" in song else {}
    return await http.post("/v1/jobs", json={**SONG, **song}, headers={**bearing(key), **idempotency})


def refused(answer: httpx.Response, code: str, status: int = 429) -> None:
    assert answer.status_code == status, answer.text
    found = problem(answer)
    assert (found["code"], found["retryable"]) == (code, status == 429)
    assert ("Retry-After" in answer.headers) == (status == 429)


async def test_a_lane_that_is_not_allowed(http: httpx.AsyncClient, redis: Redis) -> None:
    key = key_of(redis, "acme", Limits(lanes=(Lane.NORMAL, Lane.LOW)))
    assert (await submit(http, key)).status_code == 202
    refused(await submit(http, key, lane="high"), "lane_not_allowed", 403)
    assert redis.zcard(Keys().live) == 1


async def test_jobs_in_flight_are_freed_by_their_end(http: httpx.AsyncClient, redis: Redis, slot: HandSlot) -> None:
    key = key_of(redis, "acme", Limits(jobs_in_flight=2))
    first, second = [(await submit(http, key)).json()["id"] for _ in range(2)]
    refused(await submit(http, key), "too_many_in_flight")
    slot.claim(first)
    refused(await submit(http, key), "too_many_in_flight")  # it runs, and is unfinished
    slot.succeed(first, [b"song"], tenant="acme")
    assert (await submit(http, key)).status_code == 202
    refused(await submit(http, key), "too_many_in_flight")
    await http.post(f"/v1/jobs/{second}/cancel", headers=bearing(key))
    assert (await submit(http, key)).status_code == 202
    assert (await submit(http, key_of(redis, "other"))).status_code == 202  # another tenant's bound is its own


async def test_queued_jobs_are_freed_by_their_start(http: httpx.AsyncClient, redis: Redis, slot: HandSlot) -> None:
    key = key_of(redis, "acme", Limits(queued_jobs=1))
    first = (await submit(http, key)).json()["id"]
    refused(await submit(http, key), "too_many_queued")
    slot.claim(first)
    assert (await submit(http, key)).status_code == 202
    slot.end_attempt(first, JobError(code="worker_lost", message="gone", retryable=True))  # it waits again
    refused(await submit(http, key), "too_many_queued")


async def test_a_full_lane_refuses_and_others_do_not(http: httpx.AsyncClient, redis: Redis) -> None:
    key = key_of(redis, "acme")
    for _ in range(5):
        assert (await submit(http, key)).status_code == 202
    answer = await submit(http, key)
    refused(answer, "lane_full")
    assert answer.headers["Retry-After"] == str(round(UNKNOWN_S))
    assert (await submit(http, key, lane="high")).status_code == 202
    assert redis.zcard(Keys().live) == 6


@pytest.mark.parametrize("path", ["/v1/jobs", "/release_task", "/generate_music_async"])
async def test_every_dialect_says_when_to_come_again(http: httpx.AsyncClient, redis: Redis, path: str) -> None:
    key = key_of(redis, "acme", Limits(jobs_in_flight=1))
    answers = [await http.post(path, json={"prompt": "jazz"}, headers=bearing(key)) for _ in range(2)]
    assert [answer.status_code < 300 for answer in answers] == [True, False], answers[0].text
    assert (answers[1].status_code, answers[1].headers["Retry-After"]) == (429, str(round(UNKNOWN_S)))


async def test_a_repeated_key_is_answered_however_full_it_is(http: httpx.AsyncClient, redis: Redis) -> None:
    key = key_of(redis, "acme", Limits(jobs_in_flight=1))
    first = await submit(http, key, idempotency_key="one")
    again = await submit(http, key, idempotency_key="one")
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    refused(await submit(http, key, idempotency_key="two"), "too_many_in_flight")


@pytest.mark.parametrize(("limits", "allowed"), [(Limits(jobs_in_flight=3), 3), (Limits(queued_jobs=4), 4), (None, 5)])
async def test_replicas_together_let_in_no_more(
    settings: GatewaySettings, redis: Redis, limits: Limits | None, allowed: int
) -> None:
    key = key_of(redis, "acme", limits)
    async with serving(settings) as (_, one), serving(settings) as (_, two):
        answers = await asyncio.gather(*(submit(http, key) for _ in range(10) for http in (one, two)))
    assert sorted(answer.status_code for answer in answers) == [202] * allowed + [429] * (20 - allowed)
    assert redis.llen("rq:queue:default.normal") == allowed
    assert redis.zcard(Keys().live) == allowed


async def test_gpu_seconds_of_a_day(http: httpx.AsyncClient, redis: Redis, slot: HandSlot) -> None:
    key = key_of(redis, "acme", Limits(gpu_seconds_per_day=1.0))
    job_id = (await submit(http, key)).json()["id"]
    slot.claim(job_id)
    slot.succeed(job_id, [b"song"], tenant="acme")  # took 1 s of the engine
    answer = await submit(http, key)
    refused(answer, "gpu_time_spent")
    assert 1 <= int(answer.headers["Retry-After"]) <= 86_400
    redis.delete(Keys().usage("acme", day_number(now().date())))  # midnight
    assert (await submit(http, key)).status_code == 202


async def test_the_day_is_that_of_the_clock_that_counts(
    http: httpx.AsyncClient, redis: Redis, slot: HandSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("api.queue.retry_after", "api.v1.usage"):
        monkeypatch.setattr(f"{module}.now", lambda: now() + timedelta(days=1, hours=3), raising=False)
    key = key_of(redis, "acme", Limits(gpu_seconds_per_day=1.0))
    job_id = (await submit(http, key)).json()["id"]
    slot.claim(job_id)
    slot.succeed(job_id, [b"song"], tenant="acme")
    left_s = until_midnight_s(redis_time(redis))
    assert int((await submit(http, key)).headers["Retry-After"]) == pytest.approx(left_s, abs=30)
    today = (await http.get("/v1/usage", headers=bearing(key))).json()["days"][-1]
    assert (today["day"], today["gpu_s"]) == (f"{redis_time(redis):%Y-%m-%d}", 1.0)


async def test_requests_per_minute_over_all_gateways(settings: GatewaySettings, redis: Redis) -> None:
    key = key_of(redis, "acme", Limits(requests_per_minute=6))
    async with serving(settings) as (_, one), serving(settings) as (_, two):
        answers = [await http.get("/v1/jobs", headers=bearing(key)) for http in (one, two) * 4]
        assert [answer.status_code for answer in answers] == [200] * 6 + [429] * 2
        refused(answers[-1], "rate_limited")
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= 10
        assert (await one.get("/v1/jobs", headers=bearing(key_of(redis, "other")))).status_code == 200
        seeds = await one.get("/status/x", headers=bearing(key))
        assert (seeds.status_code, list(seeds.json())) == (429, ["detail"])
        redis.delete(Keys().rate("acme"))  # a minute
        assert (await two.get("/v1/jobs", headers=bearing(key))).status_code == 200


# -- usage


async def test_usage_of_a_job_and_of_a_day(http: httpx.AsyncClient, redis: Redis, slot: HandSlot) -> None:
    key, limits = key_of(redis, "acme", Limits(queued_jobs=9)), {"queued_jobs": 9}
    succeeded, failed, canceled = [(await submit(http, key)).json()["id"] for _ in range(3)]
    slot.claim(succeeded)
    slot.succeed(succeeded, [b"song", b"another"], tenant="acme")
    slot.claim(failed)
    slot.fail(failed, JobError(code="out_of_memory", message="too long"))
    await http.post(f"/v1/jobs/{canceled}/cancel", headers=bearing(key))
    usage = (await http.get("/v1/usage", headers=bearing(key))).json()
    assert len(usage["days"]) == 30
    today = usage["days"][-1]
    assert (today["succeeded"], today["failed"], today["canceled"], today["jobs"]) == (1, 1, 1, 3)
    assert (today["gpu_s"], today["size_bytes"]) == (1.0, 11)
    assert today["queue_s"] > 0
    assert usage["total"] == {name: value for name, value in today.items() if name != "day"}
    assert {name: usage["limits"][name] for name in limits} == limits
    job = (await http.get(f"/v1/jobs/{succeeded}", headers=bearing(key))).json()
    assert (job["usage"]["gpu_s"], job["usage"]["size_bytes"]) == (1.0, 11)
    assert (await submit(http, key)).json()["usage"] is None
    other = (await http.get("/v1/usage", headers=bearing(key_of(redis, "other")))).json()
    assert other["total"]["jobs"] == 0


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("since=2026-01-01&until=2026-01-03", 200),
        ("since=2026-01-03&until=2026-01-01", 422),
        ("since=2020-01-01&until=2026-01-01", 422),
        ("until=0001-01-01", 200),
        ("since=9999-12-31", 422),
        ("until=9999-12-31", 200),
        ("since=yesterday", 422),
    ],
)
async def test_days_that_are_asked_for(http: httpx.AsyncClient, redis: Redis, query: str, status: int) -> None:
    answer = await http.get(f"/v1/usage?{query}", headers=bearing(key_of(redis, "acme")))
    assert answer.status_code == status, answer.text


async def test_usage_is_counted_once_whichever_process_ends_the_job(
    http: httpx.AsyncClient, redis: Redis, keys: Keys, slot: HandSlot
) -> None:
    job_id = (await submit(http, key_of(redis, "acme"))).json()["id"]
    slot.claim(job_id, "first")
    assert redis.zcard(keys.running("acme")) == 1
    lost = JobError(code="worker_lost", message="gone", retryable=True)
    slot.jobs(calls.release(job_id, "first", lost, charged=True, gpu_s=2.5))
    slot.claim(job_id, "second")
    failed = Outcome(JobStatus.FAILED, JobError(code="out_of_memory", message="too long"), gpu_s=1.5)
    ends = [slot.jobs(calls.finish(job_id, "second", failed, recorded=True)) for _ in range(2)]
    assert [end.decided for end in ends] == [True, False]
    canceled = Outcome(JobStatus.CANCELED)
    assert not slot.jobs(calls.finish(job_id, "", canceled, recorded=True)).decided
    day: dict[Any, Any] = redis.hgetall(keys.usage("acme", day_number(now().date())))
    assert (float(day[b"gpu_s"]), day[b"failed"], b"canceled" in day) == (4.0, b"1", False)
    usage = Board(redis, keys).entry(job_id).usage
    assert usage and (usage.gpu_s, usage.size_bytes) == (4.0, 0)
    assert redis.zcard(keys.running("acme")) == redis.zcard(keys.in_flight("acme")) == 0


# -- when to try again


def pool(pace_s: float | None, slots: int, running: int = 0, **waiting: int) -> Pool:
    worker = Presence(
        name="w", pool="default", stage=WorkerStage.READY, slots=slots, busy_slots=slots, started_at=now()
    )
    workers = (worker,) if slots else ()
    counts = {lane: waiting.get(lane.value, 0) for lane in Lane}
    return Pool("default", counts, running=running, workers=workers, pace_s=pace_s)


@pytest.mark.parametrize(
    ("seen", "lane", "expected_s"),
    [
        (pool(10, 2, normal=100), Lane.NORMAL, 5),  # one ends every 5 s
        (pool(10, 2, high=3, normal=100), Lane.NORMAL, 20),  # three go first
        (pool(10, 2, high=100), Lane.HIGH, 5),
        (pool(0.01, 8, normal=9), Lane.NORMAL, 1),
        (pool(600, 1, high=900), Lane.LOW, 3600),
        (pool(None, 2), Lane.NORMAL, UNKNOWN_S),
        (pool(10, 0), Lane.NORMAL, UNKNOWN_S),
    ],
)
def test_room_in_a_lane(seen: Pool, lane: Lane, expected_s: float) -> None:
    assert room_in_lane_s(seen, lane) == expected_s


@pytest.mark.parametrize(
    ("seen", "mine", "expected_s"),
    [
        (pool(10, 2, running=2, normal=2), 4, 5),  # all are mine
        (pool(10, 2, running=2, normal=18), 2, 50),  # one in ten is mine
        (pool(10, 2), 0, 5),
        (pool(None, 2), 3, UNKNOWN_S),
    ],
)
def test_room_for_a_tenant(seen: Pool, mine: int, expected_s: float) -> None:
    assert room_for_tenant_s(seen, mine) == expected_s


def test_the_measured_rate() -> None:
    assert interval_s(pool(12, 4)) == 3
    assert until_midnight_s(datetime(2026, 1, 2, 23, 59, 30, tzinfo=UTC)) == 30
