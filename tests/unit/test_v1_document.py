"""The OpenAPI document: current, with examples that hold, and a check that would notice a loss."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from starlette.routing import Match

from api import health
from api.dialects import DIALECTS
from api.dialects.seed import DIALECT as SEED
from api.lean_route import LeanRoute, RouteIndex
from api.openapi import documents
from api.problems import CODES
from api.v1 import ROUTES
from api.v1.jobs import JobRequest
from scripts.openapi import PAGE, current, losses, text_of
from serinette.job import Job, Upload
from serinette.spec import GenerationSpec
from tests.unit.tenants import serving, settings_of

TAGS = {dialect.tag for dialect in DIALECTS}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return current()


def test_the_committed_document_is_current(document: dict[str, Any]) -> None:
    assert PAGE.read_text() == text_of(document), "run `make openapi`"


def ours(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if path.startswith("/v1/") and not TAGS.intersection(operation["tags"])
    ]


def test_every_route_is_explained(document: dict[str, Any]) -> None:
    assert len(ours(document)) >= 28
    for name, operation in ours(document):
        assert operation["summary"], name
        assert operation["description"], name
        assert "500" in operation["responses"], name
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")) and status != "416":
                examples = answer["content"]["application/problem+json"]["examples"]
                assert examples, (name, status)
                for code, example in examples.items():
                    assert code in CODES
                    assert example["value"]["status"] == int(status)


def test_only_lyrics_are_said_to_be_sung(document: dict[str, Any]) -> None:
    words = re.findall(r".{0,20}\b(?:sings?|sung|sang|singing)\b.{0,20}", text_of(document), re.IGNORECASE)
    assert {each for each in words if "Lyrics to be sung" not in each and "Singing till the night" not in each} == set()


def test_examples_hold(document: dict[str, Any]) -> None:
    submit = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for example in submit.values():
        request = JobRequest.model_validate(example["value"])
        assert request.only(GenerationSpec).model_fields_set <= request.model_fields_set
    looked = document["paths"]["/v1/jobs/{job_id}"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    Job.model_validate(looked)
    kept = document["paths"]["/v1/uploads"]["post"]["responses"]["201"]["content"]["application/json"]["example"]
    Upload.model_validate(kept)


def without(document: dict[str, Any], *path: str) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    place = changed
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    return changed


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (("paths", "/v1/queue"), "GET /v1/queue is gone"),
        (("paths", "/v1/jobs", "get"), "GET /v1/jobs is gone"),
        (("paths", "/v1/jobs", "post", "responses", "202"), "answer 202 is gone"),
        (("components", "schemas", "JobRequest", "properties", "bpm"), "field bpm is gone"),
        (("components", "schemas", "Job", "properties", "eta_s"), "field eta_s is gone"),
        (("components", "schemas", "Progress", "properties", "stage"), "field stage is gone"),
        (("components", "schemas", "Problem", "properties", "code"), "field code is gone"),
    ],
)
def test_a_loss_is_noticed(document: dict[str, Any], path: tuple[str, ...], complaint: str) -> None:
    assert any(complaint in loss for loss in losses(document, without(document, *path)))


def test_demands_and_narrowings_are_noticed(document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    changed["components"]["schemas"]["JobRequest"]["required"] = ["prompt"]
    changed["components"]["schemas"]["AudioFormat"]["enum"].remove("ogg")
    listed = changed["paths"]["/v1/jobs"]["get"]
    listed["parameters"] = [p for p in listed["parameters"] if p["name"] != "cursor"]
    answered = " ".join(losses(document, changed))
    for complaint in ("prompt is required now", "no longer accepts ogg", "query parameter cursor is gone"):
        assert complaint in answered


def test_gains_are_no_losses(document: dict[str, Any]) -> None:
    assert list(losses(document, document)) == []
    older = without(document, "components", "schemas", "Job", "properties", "eta_s")
    assert list(losses(older, document)) == []
    assert list(losses(without(document, "paths", "/v1/models"), document)) == []


def test_what_is_asked_for_most_takes_the_short_way() -> None:
    """What takes more than LeanRoute reads goes FastAPI's way, at twice the cost, and no answer would show it."""
    all_routes = (*health.router.routes, *ROUTES, *SEED.routes)
    routes = [route for route in all_routes if isinstance(route, LeanRoute) and route.is_lean]
    short = {(method, route.path) for route in routes for method in route.methods or ()}
    assert {("POST", "/v1/jobs"), ("GET", "/v1/jobs/{job_id}"), ("GET", "/healthz")} <= short
    assert {("POST", "/generate_music_async"), ("GET", "/status/{request_id}")} <= short


def test_the_index_of_static_paths_overtakes_no_earlier_pattern() -> None:
    async def endpoint() -> None: ...

    routes = [LeanRoute(path, endpoint, methods=["GET"]) for path in ("/songs/{name}", "/songs/all", "/first")]
    index = RouteIndex(routes)

    def found(method: str, path: str) -> object:
        match, child = index.matches({"type": "http", "method": method, "path": path})
        return child.get("route") if match is Match.FULL else None

    assert found("GET", "/first") is routes[2]
    for missing in (("GET", "/songs/all"), ("GET", "/songs/one"), ("POST", "/first"), ("GET", "/first/")):
        assert found(*missing) is None


def test_generators_find_a_name_for_every_call_and_a_word_on_every_tag(document: dict[str, Any]) -> None:
    operations = [call for calls in document["paths"].values() for call in calls.values()]
    names = [call["operationId"] for call in operations]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+([A-Z0-9][a-z0-9]*)*", name) for name in names), names
    assert {"submitJob", "getJob", "getJobAudio", "releaseTask", "generateMusic", "chatCompletions"} <= set(names)
    # One word says too little in a client of all.
    assert [call["operationId"] for _, call in ours(document) if not re.search("[A-Z]", call["operationId"])] == []
    assert {tag for call in operations for tag in call["tags"]} == {tag["name"] for tag in document["tags"]}
    assert all(tag["description"] for tag in document["tags"])


def test_each_api_has_a_document_of_its_own(document: dict[str, Any]) -> None:
    parts = documents(document, DIALECTS)
    assert parts.keys() == {"v1", "seed", "acestep", "chat"}
    assert sum(len(part["paths"]) for part in parts.values()) == len(document["paths"])
    assert set(parts["chat"]["paths"]) == {
        "/v1/chat/completions",
        "/v1/chat/completions/{job_id}",
        "/api/v1/models",
    }
    for name, part in parts.items():
        text = text_of(part)
        for kind, place in re.findall(r'"#/components/(\w+)/(\w+)"', text):
            assert place in part["components"][kind], (name, place)
        assert "JobRequest" not in text or name == "v1"
        assert {tag["name"] for tag in part["tags"]} == {
            tag for calls in part["paths"].values() for call in calls.values() for tag in call["tags"]
        }


def test_a_field_that_may_be_left_out_has_no_default_that_generators_would_demand(document: dict[str, Any]) -> None:
    """openapi-typescript takes a field with a default for one that is always there."""
    schemas = document["components"]["schemas"]
    for name in ("JobRequest", "BatchRequest", "BatchSpec", "GenerateMusicRequest"):
        assert [field for field, part in schemas[name]["properties"].items() if "default" in part] == []
    assert schemas["JobRequest"]["properties"]["duration_s"]["description"].endswith("Default: 60.0.")
    assert "default" in schemas["GenerationSpec"]["properties"]["duration_s"]  # it is answered, too


async def test_the_documents_are_served_to_everyone(redis_url: str, file_store_url: str) -> None:
    async with serving(settings_of(redis_url, file_store_url)) as (_, http):
        assert set((await http.get("/openapi/seed.json")).json()["paths"]) >= {"/generate_music_async"}
        assert (await http.get("/openapi/other.json")).status_code == 404


def test_whatever_is_named_in_a_path_may_be_missing(document: dict[str, Any]) -> None:
    named = [
        (method, path, operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "{" in path
    ]
    assert len(named) > 15
    assert [(method, path) for method, path, responses in named if "404" not in responses] == []
