"""Long lists of a stranger's: numbers of names and items are checked first, and few complaints are ever made."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from api.dialects.acestep.request import ReleaseTask
from api.dialects.seed.request import GenerateMusicRequest
from api.v1.containers import ContainerRequest
from api.v1.jobs import JobRequest
from serinette.batch import BatchOptions, BatchSpec, Span
from serinette.container import Input
from serinette.spec import GenerationSpec
from tests.unit.tenants import serving, settings_of

# Errors are counted, not seconds: beyond FEW any number shows it.
MANY = 2_000
# Complaints about one body: a field may have as many as it may have items.
FEW = 256

MODELS: list[type[BaseModel]] = [
    JobRequest,
    BatchSpec,
    BatchOptions,
    Span,
    ContainerRequest,
    Input,
    GenerateMusicRequest,
    ReleaseTask,
]
VALUES: dict[str, Any] = {
    "numbers": [2] * MANY,
    "texts": ["x"] * MANY,
    "objects": [{}] * MANY,
    "names": {f"f{number}": number for number in range(MANY)},
    "a text of numbers": ",".join(["x"] * MANY),
    "a list as text": json.dumps(["x"] * MANY),
}
UNKNOWN = {f"f{number}": 1 for number in range(MANY)}


def complaints(model: type[BaseModel], body: dict[str, Any], *, as_json: bool) -> int:
    """How many errors pydantic makes of a body."""
    try:
        if as_json:
            model.model_validate_json(json.dumps(body))
        else:
            model.model_validate(body)
    except ValidationError as error:
        return error.error_count()
    return 0


@pytest.mark.parametrize("as_json", [False, True], ids=["objects", "JSON"])
@pytest.mark.parametrize("model", MODELS)
def test_few_complaints_are_made_of_any_body(model: type[BaseModel], as_json: bool) -> None:
    for name in model.model_fields:
        for kind, value in VALUES.items():
            assert complaints(model, {name: value}, as_json=as_json) <= FEW, (name, kind)
    assert complaints(model, UNKNOWN, as_json=as_json) <= FEW


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (JobRequest, "labels", {f"f{number}": "x" for number in range(MANY)}),
        (JobRequest, "tracks", ["drums"] * MANY),
        (JobRequest, "timesteps", [0.5] * MANY),
        (BatchOptions, "labels", {f"f{number}": "x" for number in range(MANY)}),
        (ContainerRequest, "env", {f"f{number}": "x" for number in range(MANY)}),
        (ContainerRequest, "inputs", [{"path": "x"}] * MANY),
    ],
)
def test_a_length_is_checked_before_the_items(model: type[BaseModel], field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as answered:
        model.model_validate({field: value})
    # Our check's own words; pydantic's say `after validation`, as it has been through the items by then.
    (error,) = answered.value.errors()
    assert error["msg"].startswith(f"{field}: must have at most ")
    assert error["msg"].endswith(f" items, not {MANY}")


def test_an_unknown_name_is_named_and_cannot_break_the_answer() -> None:
    for name, shown in (("xyz", "xyz"), ("x" * 1_000, "x" * 80), ("\ud800", "?")):
        with pytest.raises(ValidationError) as answered:
            Span.model_validate({name: 1, "first": 0, "count": 1})
        (error,) = answered.value.errors()
        assert error["msg"] == f"{shown}: is no field here"
    with pytest.raises(ValidationError, match=r"promt: is no field here; did you mean prompt\?"):
        GenerationSpec.model_validate({"promt": "jazz"})


@pytest.fixture
async def http(redis_url: str, file_store_url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings_of(redis_url, file_store_url, auth=False, max_wait_s=0.01)) as (_, client):
        yield client


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Complaints of each body that FastAPI refused."""
    counts: list[int] = []
    make = RequestValidationError.__init__

    def counted(self: RequestValidationError, errors: Any, **others: Any) -> None:
        counts.append(len(errors))
        make(self, errors, **others)

    monkeypatch.setattr(RequestValidationError, "__init__", counted)
    return counts


async def test_every_call_makes_few_complaints_of_long_lists(http: httpx.AsyncClient, made: list[int]) -> None:
    described = (await http.get("/openapi.json")).json()["paths"]
    paths = [path for path, calls in described.items() if "application/json" in _kinds(calls)]
    assert {"/v1/jobs", "/v1/batches", "/generate_music_async", "/release_task", "/query_result"} <= set(paths)
    bodies = [UNKNOWN, *({name: value} for value in VALUES.values() for name in ("tracks", "labels", "timesteps"))]
    bodies += [{"specs": [UNKNOWN]}, {"specs": [{"tracks": [2] * MANY}]}, {"task_id_list": ["x"] * MANY}]
    for path in paths:
        for body in bodies:
            answered = await http.post(path.replace("{", "").replace("}", ""), json=body)
            assert answered.status_code < 500 or answered.status_code == 501, (path, answered.text[:200])
            assert len(answered.content) < 30_000, path
    assert max(made) <= FEW


def _kinds(calls: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = calls.get("post", {}).get("requestBody", {}).get("content", {})
    return found


async def test_the_field_is_named_in_every_dialect(http: httpx.AsyncClient) -> None:
    answered = (await http.post("/v1/jobs", json={"tracks": [2] * 500_000})).json()
    assert (answered["code"], answered["field"]) == ("invalid_spec", "tracks")
    assert answered["detail"] == "tracks: must have at most 12 items, not 500000"
    answered = (await http.post("/v1/jobs", json=UNKNOWN)).json()
    assert (answered["code"], answered["field"]) == ("invalid_spec", "f0")
    answered = (await http.post("/v1/batches", json={"specs": [{"tracks": [2] * 100_000}]})).json()
    assert answered["errors"] == [{"line": 1, "field": "tracks", "message": "must have at most 12 items, not 100000"}]
    refused = await http.post("/release_task", json={"timesteps": [0.5] * 100_000})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("timesteps: ")
    refused = await http.post("/release_task", json=UNKNOWN)
    assert refused.status_code == 400


@pytest.mark.parametrize(
    ("given", "seeds"),
    [({"seed": 5, "variations": 3}, (5, 6, 7)), ({"seed": [10, 99, 7], "variations": 3}, (10, 99, 7)), ({}, (0,))],
)
def test_each_variation_has_its_seed(given: dict[str, Any], seeds: tuple[int, ...]) -> None:
    spec = GenerationSpec.model_validate(given)
    assert spec.seeds == seeds
    assert GenerationSpec.from_wire(json.loads(json.dumps(spec.to_wire()))) == spec
    # What an older worker does not read is left to a newer one, and nothing else is.
    assert spec.to_wire()["schema"] == (2 if isinstance(spec.seed, tuple) else 1)


@pytest.mark.parametrize("seed", [[1, 2], [1, -1, 2], [1, 2, 3, 4], [1, 2, "x"], [1] * MANY])
def test_a_list_of_seeds_that_does_not_fit_is_refused(seed: list[Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        GenerationSpec.model_validate({"seed": seed, "variations": 3})
    assert refused.value.error_count() <= 2
    assert "seed" in str(refused.value)


@pytest.mark.parametrize("value", [True, False, "1_0", " 5 ", "5", "1e1", ""])
@pytest.mark.parametrize(
    ("model", "name"),
    [(JobRequest, "duration_s"), (JobRequest, "bpm"), (BatchSpec, "seed"), (JobRequest, "timeout_s"), (Span, "first")],
)
def test_a_number_is_a_number_and_no_text_or_truth(model: type[BaseModel], name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=f"{name}: must be a number"):
        model.model_validate({name: value})
    with pytest.raises(ValidationError, match=f"{name}: must be a number"):
        model.model_validate_json(json.dumps({name: value}))
