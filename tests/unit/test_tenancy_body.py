"""Keys in the bodies of ACE-Step 1.5's calls: found where they are documented, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis import Redis

from api.middleware import MOST_BYTES, key_of
from tests.unit.tenants import bearing, serving, settings_of
from tests.unit.tenants import key_of as new_key

JSON, FORM = "application/json", "application/x-www-form-urlencoded"


@pytest.fixture
async def http(redis_url: str, file_store_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings_of(redis_url, file_store_url)) as (_, client):
        yield client


@pytest.mark.parametrize(
    ("kind", "body", "key"),
    [
        (JSON, b'{"ai_token": "k"}', "k"),
        (JSON, b'{"aiToken": "k", "prompt": "x"}', "k"),
        ("text/plain", b'{"ai_token": "k"}', "k"),  # the dialect reads JSON under any name
        (FORM, b"prompt=x&ai_token=k", "k"),
        (JSON, b'{"ai_token": ["k"]}', None),
        (JSON, b'{"ai_token": ""}', None),
        (JSON, b'{"metas": {"ai_token": "k"}}', None),
        (JSON, b"[" * 50_000, None),
        (JSON, b'["ai_token"]', None),
        (FORM, b"ai_token=%ff\xff", None),
        (FORM, b"&".join([b"a=b"] * 300), None),
        ("multipart/form-data; boundary=b", b"ai_token=k", None),
    ],
)
def test_the_key_of_a_body(kind: str, body: bytes, key: str | None) -> None:
    assert key_of(kind, body) == key


async def test_a_documented_client_with_its_key_in_the_body(http: httpx.AsyncClient, redis: Redis) -> None:
    mine, theirs = new_key(redis, "mine"), new_key(redis, "theirs")
    released = await http.post("/release_task", json={"ai_token": mine, "prompt": "upbeat pop song"})
    assert released.status_code == 200, released.text
    task_id = released.json()["data"]["task_id"]
    assert "warnings" in released.json()["data"]
    assert not any("ai_token" in warning for warning in released.json()["data"]["warnings"])

    async def asked(key: str, **sent: Any) -> Any:
        answer = await http.post("/query_result", **sent)
        assert answer.status_code == 200, answer.text
        return json.loads(answer.json()["data"][0]["result"])[0]["error"]

    ids = json.dumps([task_id])
    assert await asked(mine, json={"ai_token": mine, "task_id_list": [task_id]}) is None
    assert await asked(mine, data={"ai_token": mine, "task_id_list": ids}) is None
    assert await asked(theirs, json={"ai_token": theirs, "task_id_list": [task_id]})  # another tenant's does not exist
    # The header counts before the body, and may lack its scheme, as there.
    raw = {"Authorization": mine}
    assert await asked(mine, json={"ai_token": theirs, "task_id_list": [task_id]}, headers=raw) is None


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/release_task", {"json": {"prompt": "x"}}),
        ("/release_task", {"json": {"ai_token": "srn_000000000000_" + "a" * 43}}),
        ("/release_task", {"json": {"ai_token": "KEY", "lyrics": "a" * MOST_BYTES}}),
        ("/release_task", {"json": {"ai_token": "KEY"}, "headers": bearing("wrong")}),
        ("/release_task", {"files": {"src_audio": b"x"}, "data": {"ai_token": "KEY"}}),
        ("/v1/jobs", {"json": {"ai_token": "KEY", "prompt": "x"}}),  # not this dialect's
        ("/generate_music_async", {"json": {"ai_token": "KEY"}}),
    ],
)
async def test_elsewhere_a_body_opens_nothing(
    http: httpx.AsyncClient, redis: Redis, path: str, sent: dict[str, Any]
) -> None:
    key = new_key(redis, "mine")
    filled: dict[str, Any] = {
        name: {field: key if value == "KEY" else value for field, value in part.items()} for name, part in sent.items()
    }
    answer = await http.post(path, **filled)
    assert answer.status_code == 401
    assert "detail" in answer.json()
    assert not redis.exists("rq:job")
