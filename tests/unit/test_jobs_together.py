"""Transitions of one moment share a round trip: each caller gets its own result, whatever becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import DataError, RedisError

from api.settings import GatewaySettings
from serinette.jobs import AsyncJobs, calls
from serinette.names import Keys
from serinette.settings import connect_redis_async
from tests import servers
from tests.jobs import Board
from tests.unit.test_queue_cost import counted

CALLERS = 20


@pytest.fixture
async def jobs(redis_url: str, keys: Keys) -> AsyncIterator[AsyncJobs]:
    client = connect_redis_async(GatewaySettings.model_validate({"redis_url": redis_url}))
    async with client:
        yield AsyncJobs(client, keys.prefix)


@pytest.fixture
def waiting(redis: Redis, keys: Keys) -> list[str]:
    board = Board(redis, keys)
    return [board.submit() for _ in range(CALLERS)]


async def test_callers_of_one_moment_share_two_round_trips_and_each_gets_its_own_result(
    jobs: AsyncJobs, waiting: list[str]
) -> None:
    await asyncio.gather(*(jobs(calls.look([])) for _ in waiting))  # both are connected
    with counted() as sent:
        found = await asyncio.gather(*(jobs(calls.look([job_id])) for job_id in waiting))
    assert [seen.entry and seen.entry.id for (seen,) in found] == waiting
    assert [seen.place for (seen,) in found] == list(range(CALLERS))
    assert (sent.commands.count("EVALSHA"), sent.round_trips) == (CALLERS, 2)


async def test_a_long_list_holds_up_no_call_of_its_moment(jobs: AsyncJobs, waiting: list[str]) -> None:
    await asyncio.gather(*(jobs(calls.look(waiting[:9])) for _ in range(3)))  # three are connected
    with counted() as sent:
        polled, listed = await asyncio.gather(
            asyncio.gather(*(jobs(calls.look([job_id])) for job_id in waiting)), jobs(calls.look(waiting))
        )
    assert [seen.entry and seen.entry.id for seen in listed] == waiting == [each[0].entry.id for each in polled]  # type: ignore[union-attr]
    assert (sent.commands.count("EVALSHA"), sent.round_trips) == (CALLERS + 1, 3)


async def test_a_server_that_forgot_the_script_gets_it_once_for_all_of_them(
    jobs: AsyncJobs, redis: Redis, waiting: list[str]
) -> None:
    redis.script_flush()
    found = await asyncio.gather(*(jobs(calls.look([job_id])) for job_id in waiting))
    assert all(seen.entry for (seen,) in found)


async def test_a_server_that_forgets_the_script_meanwhile_gets_it_again(
    jobs: AsyncJobs, redis: Redis, waiting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.script_flush()
    load, loaded = jobs.redis.script_load, []

    async def forgotten(body: str) -> None:
        await load(body)
        loaded.append(body)
        if len(loaded) == 3:
            redis.script_flush()

    monkeypatch.setattr(jobs.redis, "script_load", forgotten)
    (seen,) = await jobs(calls.look(waiting[:1]))
    assert seen.entry
    assert len(loaded) > 3


async def test_one_refused_and_one_gone_take_nothing_from_the_others(jobs: AsyncJobs, waiting: list[str]) -> None:
    good = [asyncio.create_task(jobs(calls.look([job_id]))) for job_id in waiting]
    refused = asyncio.create_task(jobs.together(calls.look(waiting[:1]), ("NO SUCH COMMAND",)))
    gone = asyncio.create_task(jobs(calls.look(waiting[:1])))
    await asyncio.sleep(0)  # all of them have asked
    gone.cancel()
    assert all(seen.entry for (seen,) in await asyncio.gather(*good))
    _, (error,) = await refused
    assert isinstance(error, RedisError)


async def test_arguments_that_cannot_be_sent_fail_their_own_caller_alone(jobs: AsyncJobs, waiting: list[str]) -> None:
    wrong: list[Any] = ["half a surrogate pair: \ud800", {"no": "argument"}]
    found = await asyncio.gather(*(jobs(calls.look([job_id])) for job_id in [*wrong, *waiting]), return_exceptions=True)
    assert [type(each) for each in found[:2]] == [UnicodeEncodeError, DataError]
    assert [each[0].entry.id for each in found[2:]] == waiting  # type: ignore[index, union-attr]  # none is an error


async def test_the_disk_is_waited_for_once_and_by_those_alone_who_asked(tmp_path: Any, keys: Keys) -> None:
    with servers.valkey(tmp_path / "durable", append_only=True) as server:
        client = connect_redis_async(GatewaySettings.model_validate({"redis_url": server.connection_url}))
        async with client:
            jobs = AsyncJobs(client, keys.prefix)
            look = calls.look(["none"])
            await jobs(look)
            with counted() as sent:
                (_, first), (_, second), (_, third) = await asyncio.gather(
                    jobs.together(look, ("SET", keys.synced, "x"), wait_ms=2_000),
                    jobs.together(look),
                    jobs.together(look, wait_ms=2_000),
                )
    assert (first[-1], second, third) == ([1, 0], [], [[1, 0]])
    assert (sent.commands.count("WAITAOF"), sent.round_trips) == (1, 1)


async def test_a_server_that_is_gone_is_reported_to_each_of_them(tmp_path: Any, keys: Keys) -> None:
    with servers.valkey(tmp_path / "leaving") as server:
        settings = GatewaySettings.model_validate({"redis_url": server.connection_url, "redis_timeout_s": 1})
        client = connect_redis_async(settings)
        jobs = AsyncJobs(client, keys.prefix)
        assert await jobs(calls.look(["none"]))
    found = await asyncio.gather(*(jobs(calls.look(["none"])) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(each, RedisError) for each in found)
    await client.aclose()
