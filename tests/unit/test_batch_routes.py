"""Batches over HTTP, on a real Valkey and a directory store: what is taken, what is refused, and what that leaves."""

from __future__ import annotations

import codecs
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis import Redis

from api.app import create_app
from api.settings import GatewaySettings
from serinette.names import Keys, Lane
from serinette.store import Store
from tests.gateways import problem

SONG = {"prompt": "jazz piano, smooth", "duration_s": 15}
JSONL = {"Content-Type": "application/jsonl"}


pytestmark = pytest.mark.shared_valkey


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
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as opened:
        yield opened


def lines(*specs: object) -> bytes:
    return b"".join(spec if isinstance(spec, bytes) else json.dumps(spec).encode() + b"\n" for spec in specs)


async def test_jsonl(client: httpx.AsyncClient, redis: Redis, store: Store) -> None:
    body = codecs.BOM_UTF8 + lines(*({**SONG, "custom_id": f"song {number}"} for number in range(600)))
    answer = await client.post("/v1/batches?name=moods&label=album=blue", content=body, headers=JSONL)
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert answer.headers["Location"] == f"/v1/batches/{batch['id']}"
    assert (batch["status"], batch["name"], batch["labels"]) == ("in_progress", "moods", {"album": "blue"})
    assert batch["request_counts"]["total"] == 600
    assert (await client.get(answer.headers["Location"])).json() == batch
    assert (await client.get("/v1/batches")).json() == {"batches": [batch]}
    assert len(list(store.list(f"batches/default/{batch['id']}"))) == 4  # three parts of the input, and the header
    assert redis.zcard(Keys().waiting("default", Lane.LOW)) == 0  # nothing is released by a gateway
    found = (await client.get(f"/v1/batches/{batch['id']}/lines?first=249&limit=250")).json()["lines"]
    assert [(line["line"], line["status"]) for line in found] == [(249, "pending"), (250, "pending")]


async def test_a_sweep(client: httpx.AsyncClient) -> None:
    body = {
        "specs": [SONG, {"prompt": "cello"}],
        "sweep": {"guidance_scale": [3, 5], "seed": {"first": 7, "count": 3}},
        "labels": {"a": "b"},
    }
    batch = (await client.post("/v1/batches", json=body)).json()
    assert batch["request_counts"]["total"] == 12
    found = (await client.get(f"/v1/batches/{batch['id']}/lines?first=6&limit=2")).json()["lines"]
    assert [(line["line"], line["seed"]) for line in found] == [(6, 9), (7, 7)]


WRONG: list[tuple[str, bytes, int, list[tuple[int, str | None]]]] = [
    ("bounds", lines(SONG, {"duration_s": 601, "steps": 0}), 422, [(2, "duration_s"), (2, "steps")]),
    ("unknown fields", lines(SONG, {"promt": "jazz"}), 422, [(2, "promt")]),
    ("not json", lines(b"{\n", SONG, b"[]\n"), 422, [(1, None), (3, None)]),
    ("a name twice", lines({"custom_id": "a"}, {"custom_id": "b"}, {"custom_id": "a"}), 422, [(3, "custom_id")]),
    ("no such upload", lines(SONG, {"task": "cover", "source_audio": "upload-0"}), 422, [(2, "source_audio")]),
    ("no such model", lines({"model": "unknown"}), 422, [(1, "model")]),
    ("no such lora", lines({"lora": "unknown"}), 422, [(1, "lora")]),
    ("not utf-8", b'{"prompt": "\xff"}\n', 422, [(1, None)]),
    ("no line", b"", 422, []),
    ("a line of a mebibyte", b'{"prompt": "' + b"a" * 1_048_576 + b'"}\n', 422, [(1, None)]),
    ("too many lines", b"{}\n" * 100_001, 422, []),
    ("too many lines, the last without an end", b"{}\n" * 100_000 + b"{}", 422, []),
]


@pytest.mark.parametrize(("body", "status", "expected"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
async def test_what_is_wrong_is_reported_by_line_and_leaves_nothing(
    client: httpx.AsyncClient,
    redis: Redis,
    store: Store,
    body: bytes,
    status: int,
    expected: list[tuple[int, str | None]],
) -> None:
    answer = await client.post("/v1/batches", content=body, headers=JSONL)
    assert answer.status_code == status, answer.text
    refusal = problem(answer)
    assert refusal["code"] == "invalid_batch"
    assert [(error["line"], error.get("field")) for error in refusal["errors"]] == expected
    assert redis.keys() == []
    assert list(store.list("batches")) == []


async def test_a_hundred_errors_are_enough(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/batches", content=b'{"steps": 0}\n' * 5_000, headers=JSONL)
    assert [error["line"] for error in problem(answer)["errors"]] == list(range(1, 101))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"specs": []}, "specs"),
        ({"specs": "jazz"}, "specs"),
        ({"specs": [SONG], "sweep": {"nothing": [1]}}, "sweep"),
        ({"specs": [SONG], "sweep": {"seed": []}}, "sweep"),
        ({"specs": [SONG], "sweep": {"seed": {"first": 0, "count": 100_001}}}, "sweep"),
        ({"specs": [SONG, SONG], "sweep": {"seed": {"first": 0, "count": 50_001}}}, "sweep"),
        ({"specs": [SONG], "labels": {"batch": "mine"}}, "labels"),
        ({"specs": [SONG], "priority": 1}, "priority"),
        ({"specs": [SONG], "webhook": "https://example.com/"}, "webhook"),
        ([SONG], None),
    ],
)
async def test_what_is_wrong_with_a_whole_batch(client: httpx.AsyncClient, body: object, field: str | None) -> None:
    answer = await client.post("/v1/batches", json=body)
    assert answer.status_code in {422, 501}, answer.text
    assert problem(answer).get("field") == field


async def test_other_bodies(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/batches", content=b"prompt\njazz\n", headers={"Content-Type": "text/csv"})
    assert answer.status_code == 415
    huge = b'{"specs": [{"prompt": "' + b"a" * 1_100_000 + b'"}]}'
    answer = await client.post("/v1/batches", content=huge, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


async def test_a_key_is_one_batch(client: httpx.AsyncClient, redis: Redis) -> None:
    headers = {**JSONL, "Idempotency-Key": "mine"}
    first = await client.post("/v1/batches", content=lines(SONG, {}), headers=headers)
    again = await client.post("/v1/batches", content=lines(SONG, {}), headers=headers)
    assert (again.status_code, again.headers.get("Idempotency-Replayed")) == (202, "true")
    assert again.json() == first.json()
    other = await client.post("/v1/batches", content=lines(SONG, {"steps": 4}), headers=headers)
    assert (other.status_code, problem(other)["code"]) == (409, "idempotency_conflict")
    same = await client.post("/v1/batches", content=lines({**SONG, "seed": None}, {"variations": 1}), headers=headers)
    assert same.headers.get("Idempotency-Replayed") == "true", "what is left out and its default are the same"
    labeled = {**JSONL, "Idempotency-Key": "labeled"}
    ids = {
        (await client.post(f"/v1/batches?{query}", content=lines(SONG), headers=labeled)).json()["id"]
        for query in ("label=a=1&label=b=2", "label=b=2&label=a=1")
    }
    assert len(ids) == 1, "labels have no order"
    # A gateway that died between store and Redis: the store has the header, and decides.
    redis.flushdb()
    other = await client.post("/v1/batches", content=lines(SONG, {"steps": 4}), headers=headers)
    assert other.status_code == 409
    again = await client.post("/v1/batches", content=lines(SONG, {}), headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.json()["created_at"] == first.json()["created_at"]


async def test_a_tenant_has_so_many_unfinished_batches(client: httpx.AsyncClient) -> None:
    for _ in range(3):
        assert (await client.post("/v1/batches", content=lines(SONG), headers=JSONL)).status_code == 202
    answer = await client.post("/v1/batches", content=lines(SONG), headers=JSONL)
    assert (answer.status_code, problem(answer)["code"]) == (429, "too_many_in_flight")
    assert answer.headers["Retry-After"] == "60"


async def test_steering(client: httpx.AsyncClient) -> None:
    batch = (await client.post("/v1/batches", content=lines(SONG), headers=JSONL)).json()
    at = f"/v1/batches/{batch['id']}"
    for move, status, then in [
        ("resume", 200, "in_progress"),
        ("pause", 200, "paused"),
        ("pause", 200, "paused"),
        ("resume", 200, "in_progress"),
        ("retry", 409, "in_progress"),
        ("cancel", 200, "canceling"),
        ("cancel", 200, "canceling"),
        ("pause", 409, "canceling"),
    ]:
        answer = await client.post(f"{at}/{move}")
        assert answer.status_code == status, (move, answer.text)
        assert (await client.get(at)).json()["status"] == then
    assert problem(await client.delete(at))["code"] == "not_finished"
    for file in ("output.jsonl", "errors.jsonl", "songs.zip"):
        assert problem(await client.get(f"{at}/{file}"))["code"] == "not_finished"


async def test_no_such_batch(client: httpx.AsyncClient) -> None:
    for name in ("unknown", "batch-" + 32 * "0"):
        for way in ("", "/lines", "/output.jsonl", "/songs.zip"):
            assert problem(await client.get(f"/v1/batches/{name}{way}"))["code"] == "not_found"
        for way in ("pause", "resume", "cancel", "retry"):
            assert problem(await client.post(f"/v1/batches/{name}/{way}"))["code"] == "not_found"
        assert problem(await client.delete(f"/v1/batches/{name}"))["code"] == "not_found"


async def test_blank_lines_are_left_out_and_plain_text_is_lines_too(client: httpx.AsyncClient) -> None:
    line = json.dumps(SONG).encode()
    body = b"\n" + line + b"\n \r\n" + line + b"\n\n"
    for kind in ("text/plain; charset=utf-8", "application/jsonl"):
        answer = await client.post("/v1/batches", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["request_counts"]["total"]) == (202, 2), answer.text
