"""The OpenAPI document: FastAPI's, with our problems and events in it instead of its own errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from api.dialects.dialect import Dialect
from api.events import JobEvent
from api.problems import Problem, speaks_problems
from serinette.batch import BatchRequest

# Models of responses that FastAPI knows no model of.
_MODELS: tuple[type[BaseModel], ...] = (Problem, JobEvent, BatchRequest)

# What paths of other servers' dialects may answer beside what their routes document.
_REFUSALS = {
    "400": "The body cannot be read, or a field is wrong.",
    "401": "The key is missing, unknown, expired or revoked.",
    "413": "The body is longer than is allowed.",
    "429": "A bound is reached; `Retry-After` says when to try again.",
    "500": "Something went wrong here.",
    "503": "The queue or the store does not answer; nothing was accepted.",
}
_REFUSAL = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}},
}


def complete(app: FastAPI, dialects: Sequence[Dialect]) -> None:
    """Have the application serve the completed document."""
    generate = app.openapi
    never_422 = {dialect.tag for dialect in dialects if not dialect.answers_422}

    def openapi() -> dict[str, Any]:
        document = generate()
        for model in _MODELS:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"] |= {**schema.pop("$defs", {}), model.__name__: schema}
        document["components"]["schemas"]["Refusal"] = _REFUSAL
        document["components"]["responses"] = {f"Refusal{status}": _refusal(why) for status, why in _REFUSALS.items()}
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}, {}]  # where the operator asks for keys
        for path, methods in document["paths"].items():
            for operation in methods.values():
                answers = operation["responses"]
                if speaks_problems(path, app) or never_422.intersection(operation["tags"]):
                    _drop_foreign_errors(answers)
                if not speaks_problems(path, app):
                    for status in _REFUSALS:
                        answers.setdefault(status, {"$ref": f"#/components/responses/Refusal{status}"})
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents


def _drop_foreign_errors(responses: dict[str, Any]) -> None:
    # FastAPI adds its own 422 wherever a parameter could be wrong and we document no 422 of ours: there none can be.
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]


def _refusal(why: str) -> dict[str, Any]:
    return {"description": why, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}}
