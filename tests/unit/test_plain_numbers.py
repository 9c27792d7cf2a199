"""Numbers in text: every query parameter and every body field of every API takes a number as programs write it, and
refuses what pydantic would also read as one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from tests.unit.tenants import settings_of

pytestmark = pytest.mark.shared_valkey
NO_NUMBERS = [True, "true", "1_0", " 5 ", "5 ", "NaN", "inf", "-inf", "٥", "0x10", "9" * 60, "9" * 5_000]
NO_BATCH = f"batch-{'0' * 32}"
NO_JOB = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"


@pytest.fixture
def app(redis_url: str, file_store_url: str) -> FastAPI:
    return create_app(settings_of(redis_url, file_store_url, auth=False))


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as opened,
    ):
        yield opened


def _is_number(schema: dict[str, Any]) -> bool:
    kinds = [schema, *schema.get("anyOf", ())]
    numbers = any(kind.get("type") in {"integer", "number"} for kind in kinds)
    return numbers and not any(kind.get("type") in {"string", "array"} for kind in kinds)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation


def _url(path: str) -> str:
    return path.format(batch_id=NO_BATCH, job_id=NO_JOB, request_id=NO_JOB, upload_id="upload", name="x")


async def test_a_number_in_a_query_is_plain(http: httpx.AsyncClient, app: FastAPI) -> None:
    seen = 0
    for method, path, operation in _operations(app.openapi()):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] != "query" or not _is_number(parameter["schema"]):
                continue
            seen += 1
            kind = {"Content-Type": "application/jsonl"} if path == "/v1/batches" else {}
            for value in NO_NUMBERS:
                query = {parameter["name"]: str(value)}
                answer = await http.request(method, _url(path), params=query, headers=kind)
                assert answer.status_code in {400, 422}, (path, query, answer.text)
                assert parameter["name"] in answer.text, (path, query, answer.text)
    assert seen >= 8


async def test_a_number_in_a_body_of_any_api_is_plain(http: httpx.AsyncClient, app: FastAPI) -> None:
    document = app.openapi()
    seen = 0
    for method, path, operation in _operations(document):
        if path == "/v1/containers":  # needs a cluster; its model is in test_bounded_input.py
            continue
        for kind, body in operation.get("requestBody", {}).get("content", {}).items():
            if "json" not in kind:
                continue
            schema = body["schema"]
            for part in [schema, *schema.get("anyOf", ())]:
                model = document["components"]["schemas"].get(part.get("$ref", "").rpartition("/")[2], part)
                for name, field in model.get("properties", {}).items():
                    if not _is_number(field) or field.get("readOnly"):
                        continue
                    seen += 1
                    for value in (True, "1_0", " 5 ", "٥"):
                        sent = json.dumps({"messages": [{"role": "user", "content": "jazz"}], name: value})
                        answer = await http.request(method, _url(path), content=sent, headers={"Content-Type": kind})
                        assert answer.status_code in {400, 422}, (path, name, value, answer.text)
    assert seen >= 40


@pytest.mark.parametrize("seed", ["1_0", "٥", "1, 2_0", [True], ["1_0"], "+5"])
async def test_a_seed_is_plain_in_every_api(http: httpx.AsyncClient, seed: object) -> None:
    message = {"messages": [{"role": "user", "content": "jazz"}]}
    for path, name in (
        ("/release_task", "seed"),
        ("/v1/chat/completions", "seed"),
        ("/generate_music_async", "manual_seeds"),
    ):
        answer = await http.post(path, json={**message, name: seed})
        assert answer.status_code in {400, 422}, (path, answer.text)
    answer = await http.post("/release_task", json={"prompt": "x", "timesteps": "0.9,0.5_0,0"})
    assert answer.status_code == 400, answer.text


async def test_numbers_as_programs_write_them_are_taken(http: httpx.AsyncClient) -> None:
    assert (await http.get("/v1/jobs?limit=5")).status_code == 200
    for body in ({"bpm": "120", "audio_duration": "12.5", "inference_steps": "8"}, {"seed": "1, 2", "bpm": 1.2e2}):
        answer = await http.post("/release_task", json={"prompt": "x", **body})
        assert answer.status_code == 200, answer.text
