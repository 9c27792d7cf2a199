"""What a new dialect costs: its own folder, and a line in api/dialects/__init__.py. A tiny one stands for all."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from api.app import create_app
from api.dialects import DIALECTS
from api.settings import GatewaySettings
from scripts import compatibility
from tests.unit import tiny_dialect
from tests.unit.tenants import key_of, serving, settings_of

API = Path(__file__).parents[2] / "api"
WITH_TINY = (*DIALECTS, tiny_dialect.DIALECT)
NO_JOB = "5b0e1a4c-0f5c-4b55-8a54-6f4bb0a2a111"


@pytest.fixture(scope="module")
def settings(valkey_url: str, store_url: str) -> GatewaySettings:
    return settings_of(valkey_url, store_url, auth=False, max_body_bytes=1_024, max_upload_bytes=20_000)


@pytest.fixture
async def http(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings, WITH_TINY) as (_, client):
        yield client


def test_only_the_list_names_a_dialects_folder() -> None:
    folders = {path.parent.name for path in (API / "dialects").glob("*/__init__.py")}
    assert folders == {"acestep", "chat", "seed"}
    for folder in folders:
        naming = {
            str(path.relative_to(API))
            for path in API.rglob("*.py")
            if re.search(rf"dialects(\.| import .*\b){folder}\b", path.read_text())
        }
        others = {name for name in naming if not name.startswith(f"dialects/{folder}/")}
        assert others == {"dialects/__init__.py"}


def test_the_tables_of_compatibility_are_made_of_the_dialects_own() -> None:
    page = compatibility.PAGE.read_text()
    assert compatibility.filled(page) == page, "run `make compatibility`"
    assert compatibility.filled(page.replace("| `manual_seeds`", "| `seeds`")) == page
    for table, model in compatibility.TABLES.values():
        assert set(model.model_fields) <= set(table), "a field that no row reads has no effect, and nothing says so"


def test_the_calls_of_compatibility_are_those_that_are_there() -> None:
    theirs, _, _ = re.sub(r"{\w+}", "{id}", compatibility.PAGE.read_text()).partition("## Who can and who cannot")
    calls = {re.sub(r"{[^}]+}", "{id}", path) for dialect in DIALECTS for path in dialect.paths}
    assert {path for path in calls if f"{path}`" not in theirs and f"{path}?" not in theirs} == set()
    named = {
        path
        for call in re.findall(r"^\| (`[A-Z]+[` ][^|]*)\|", theirs, re.M)
        for path in re.findall(r"/[\w/{}]+", call)
    }
    assert len(named) > 30
    assert named - calls == {"/health", "/v1/models", "/v1/models/{id}"}  # every API's, and ours


@pytest.mark.parametrize(
    "path",
    [
        "/generate_music_async",
        "/generate_music_with_audio_json",
        "/initialize",
        "/release_task",
        "/v1/lora/toggle",
        "/v1/chat/completions",
        "/v1/tunes/new",
    ],
)
async def test_json_is_read_without_its_content_type(http: httpx.AsyncClient, path: str) -> None:
    """As `requests.post(url, data=json.dumps(...))` sends it: each answers what it answers to JSON under its name."""
    sent = b'{"infer_step": 0, "bf16": "?", "seed": "x", "use_lora": "?", "seconds": 0, "messages": 1}'
    nameless = await http.post(path, content=sent)
    named = await http.post(path, content=sent, headers={"Content-Type": "application/json"})
    assert "Content-Type" not in nameless.request.headers
    assert 400 <= named.status_code < 500
    shown = [re.sub(r'"timestamp":\d+', "", answer.text) for answer in (nameless, named)]
    assert (nameless.status_code, shown[0]) == (named.status_code, shown[1])


async def test_its_fields_become_a_job_and_what_is_not_done_as_asked_is_known(http: httpx.AsyncClient) -> None:
    sent = {"text": "a waltz", "seconds": "30", "tempo": 91.6, "reverb": True, "colour": "blue"}
    answer = (await http.post("/v1/tunes/new", json=sent)).json()
    assert answer["changed"] == [["tempo", 91.6, 92, "whole beats only"]]
    assert answer["unused"] == ["reverb", "colour"]
    spec = (await http.get(f"/v1/jobs/{answer['tune']}")).json()["spec"]
    assert (spec["prompt"], spec["duration_s"], spec["bpm"]) == ("a waltz", 30, 92)
    plain = (await http.post("/v1/tunes/new", json={"reverb": False})).json()
    assert (plain["changed"], plain["unused"]) == ([], [])


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"seconds": 0}, 422, "seconds: Input should be greater than or equal to 1"),
        ({"tempo": 500}, 422, "tempo: Input should be less than or equal to 300"),
        ({"seconds": "long"}, 400, "Input should be a valid number, unable to parse string as a number"),
        ({"describe": True}, 501, "describe: nothing here describes songs"),
    ],
)
async def test_its_errors_have_its_shape_and_its_names(
    http: httpx.AsyncClient, sent: dict[str, object], status: int, words: str
) -> None:
    refused = await http.post("/v1/tunes/new", json=sent)
    assert (refused.status_code, refused.json()) == (status, {"wrong": words})


async def test_its_jobs_are_found_and_canceled(http: httpx.AsyncClient) -> None:
    tune = (await http.post("/v1/tunes/new", json={})).json()["tune"]
    assert (await http.get(f"/v1/tunes/{tune}")).json() == {"state": "queued"}
    assert (await http.delete(f"/v1/tunes/{tune}")).json() == {"stopped": True}
    assert (await http.delete(f"/v1/tunes/{tune}")).json() == {"stopped": False}
    for unknown in (NO_JOB, "a.b"):
        missing = await http.get(f"/v1/tunes/{unknown}")
        assert (missing.status_code, set(missing.json())) == (404, {"wrong"})


async def test_what_is_refused_before_its_calls_is_no_problem_of_ours(http: httpx.AsyncClient) -> None:
    for answer in (await http.put("/v1/tunes/new"), await http.get("/v1/tunes/a/b")):
        assert set(answer.json()) == {"detail"}
    assert (await http.get("/v1/nothing")).headers["Content-Type"] == "application/problem+json"


async def test_its_file_paths_take_more_than_other_paths(http: httpx.AsyncClient) -> None:
    long = {"colour": "x" * 5_000}
    assert (await http.post("/v1/tunes/new", json=long)).status_code == 200
    assert (await http.post("/v1/jobs", json=long)).status_code == 413


async def test_it_adds_to_the_answers_that_several_apis_give(http: httpx.AsyncClient) -> None:
    health = (await http.get("/health")).json()
    assert {"tiny": 1, "status": "healthy", "code": 200}.items() <= health.items()
    models = (await http.get("/v1/models")).json()
    assert (models["names"], models["models"], models["data"]) == ([], [], [])


async def test_its_key_may_stand_in_the_body(settings: GatewaySettings) -> None:
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        key = key_of(redis, "acme")
    asking = settings.model_copy(update={"auth": True})
    async with serving(asking, WITH_TINY) as (_, client):
        assert (await client.post("/v1/tunes/new", json={"ai_token": key})).status_code == 200
        refused = await client.post("/v1/tunes/new", json={})
        assert (refused.status_code, set(refused.json())) == (401, {"detail"})


def test_it_is_in_the_document_and_no_other_call_changes(settings: GatewaySettings) -> None:
    with_tiny, without = create_app(settings, WITH_TINY).openapi(), create_app(settings).openapi()
    added = {path: calls for path, calls in with_tiny["paths"].items() if path not in without["paths"]}
    assert set(added) == {"/v1/tunes/new", "/v1/tunes/{tune_id}"}
    assert {status for call in added["/v1/tunes/new"].values() for status in call["responses"]} >= {"200", "401", "503"}
    assert "422" not in added["/v1/tunes/new"]["post"]["responses"]
    for path, calls in without["paths"].items():
        if path != "/health":  # whose example has every dialect's keys
            assert with_tiny["paths"][path] == calls
