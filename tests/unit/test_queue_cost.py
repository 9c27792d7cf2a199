"""What a request costs Redis: commands, and round trips."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from redis import Redis

from api.queue import pool_status
from api.settings import GatewaySettings
from serinette.credentials import Limits
from serinette.settings import BriskConnection
from tests import servers
from tests.jobs import Board
from tests.unit.tenants import SONG, bearing, key_of, serving, settings_of


@pytest.fixture(autouse=True)
def _cached_pool_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the pools' figures, which all pollers share, are read in the midst of a count."""
    monkeypatch.setattr(pool_status, "MAX_AGE_S", 1e6)


class Sent:
    """Commands that asynchronous clients of this process sent, and in how many sendings."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.round_trips = 0


@contextmanager
def counted() -> Iterator[Sent]:
    sent, patch = Sent(), pytest.MonkeyPatch()
    pack, send = BriskConnection.pack_command, BriskConnection.send_packed_command

    def packed(self: BriskConnection, *command: Any) -> Any:
        sent.commands.append(str(command[0]))
        return pack(self, *command)

    async def sending(self: BriskConnection, *command: Any, **options: Any) -> None:
        sent.round_trips += 1
        await send(self, *command, **options)

    with patch.context() as patched:
        patched.setattr(BriskConnection, "pack_command", packed)
        patched.setattr(BriskConnection, "send_packed_command", sending)
        yield sent


@pytest.fixture
def settings(redis_url: str, file_store_url: str) -> GatewaySettings:
    return settings_of(redis_url, file_store_url, key_cache_s=2)


@pytest.fixture
async def http(settings: GatewaySettings, redis: Redis) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings) as (_, client):
        client.headers.update(bearing(key_of(redis, "default")))
        yield client


async def test_a_submit_and_a_poll_are_one_command_each(http: httpx.AsyncClient) -> None:
    keyed = {"Idempotency-Key": "k"}
    job = (await http.post("/v1/jobs", json=SONG, headers=keyed)).json()
    for request in (
        http.build_request("POST", "/v1/jobs", json=SONG),
        http.build_request("POST", "/v1/jobs", json=SONG, headers=keyed),
        http.build_request("GET", f"/v1/jobs/{job['id']}"),
        http.build_request("POST", "/generate_music_async", json=SONG),
        http.build_request("GET", f"/status/{job['id']}"),
    ):
        with counted() as sent:
            (await http.send(request)).raise_for_status()
        assert (sent.commands, sent.round_trips) == (["EVALSHA"], 1), request.url


async def test_keys_cost_nothing_while_they_are_remembered_and_two_reads_otherwise(
    redis: Redis, redis_url: str, file_store_url: str
) -> None:
    key = key_of(redis, "acme", Limits(requests_per_minute=1_000))
    async with serving(settings_of(redis_url, file_store_url)) as (_, http):
        url = f"/v1/jobs/{(await http.post('/v1/jobs', json=SONG, headers=bearing(key))).json()['id']}"
        with counted() as sent:
            (await http.get(url, headers=bearing(key))).raise_for_status()
    assert sorted(sent.commands) == ["EVALSHA", "EVALSHA", "HGET", "HGET"]


async def test_a_submit_that_waits_for_the_disk_is_one_round_trip_too(tmp_path: Any, file_store_url: str) -> None:
    with servers.valkey(tmp_path / "durable", append_only=True) as server:
        url = server.connection_url
        settings = GatewaySettings.model_validate(
            {"redis_url": url, "store_url": file_store_url, "durability": "fsync"}
        )
        async with serving(settings) as (_, http):
            keyed = {"Idempotency-Key": "k"}
            (await http.post("/v1/jobs", json=SONG, headers=keyed)).raise_for_status()
            for headers in ({}, keyed):
                with counted() as sent:
                    (await http.post("/v1/jobs", json=SONG, headers=headers)).raise_for_status()
                assert (sent.commands, sent.round_trips) == (["EVALSHA", "WAITAOF"], 1)


async def test_the_pool_status_is_read_once_for_concurrent_requests(http: httpx.AsyncClient) -> None:
    url = f"/v1/jobs/{(await http.post('/v1/jobs', json=SONG)).json()['id']}"
    await http.get(url)
    reader = http._transport.app.state.parts.queue._pool_status  # type: ignore[attr-defined]  # httpx's ASGI transport
    with counted() as alone:
        await reader.read(fresh=True)
    reader._last = pool_status.PoolStatuses({}, (), -1e9)
    with counted() as together:
        answers = await asyncio.gather(*(http.get(url) for _ in range(20)))
    assert {answer.json()["position"] for answer in answers} == {1}
    assert together.commands.count("EVALSHA") == 20
    for name in ("ZRANGE", "HGETALL", "ZCARD"):  # new connections say more than that
        assert together.commands.count(name) == alone.commands.count(name) > 0


@pytest.mark.parametrize(
    ("limit", "wanted", "expected"), [(3, "song", [3]), (4, "rare", [4, 8, 16, 32, 64, 128, 200]), (100, "song", [100])]
)
async def test_a_page_reads_few_jobs_at_first(
    http: httpx.AsyncClient, redis: Redis, settings: GatewaySettings, limit: int, wanted: str, expected: list[int]
) -> None:
    for _ in range(460):
        Board(redis, settings.keys).submit(labels={"name": "song"})
    looked: list[int] = []
    pack = BriskConnection.pack_command

    def packed(self: BriskConnection, *command: Any) -> Any:
        if command[0] == "EVALSHA":
            looked.append(len(command) - 5)  # EVALSHA, its hash, 1, the prefix, the transition
        return pack(self, *command)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(BriskConnection, "pack_command", packed)
        answer = await http.get("/v1/jobs", params={"limit": limit, "label": f"name={wanted}"})
    assert len(answer.json()["jobs"]) == (limit if wanted == "song" else 0)
    assert looked[: len(expected)] == expected


async def test_a_request_as_a_read_ends_starts_the_next(http: httpx.AsyncClient) -> None:
    """The event loop would turn for ever if a reading that is over were waited for."""
    reader = http._transport.app.state.parts.queue._pool_status  # type: ignore[attr-defined]  # httpx's ASGI transport
    reader._reading = over = asyncio.get_running_loop().create_future()
    over.set_result(None)
    assert (await reader.read(("default",), fresh=True)).pools
