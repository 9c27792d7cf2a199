"""The OpenAPI document: FastAPI's, with our problems and events in it instead of its own errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from api.events import JobEvent
from api.problems import Problem, speaks_problems
from api.routes.acestep.documented import TAG
from serinette.batch import BatchRequest

# Told by responses that FastAPI knows no model of.
_TOLD: tuple[type[BaseModel], ...] = (Problem, JobEvent, BatchRequest)


def complete(app: FastAPI) -> None:
    """Have the application serve the completed document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for model in _TOLD:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"] |= {**schema.pop("$defs", {}), model.__name__: schema}
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}, {}]  # where the operator asks for keys
        for path, methods in document["paths"].items():
            for operation in methods.values():
                if speaks_problems(path) or TAG in operation["tags"]:
                    _drop_foreign_errors(operation["responses"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents


def _drop_foreign_errors(responses: dict[str, Any]) -> None:
    # FastAPI adds its own 422 wherever a parameter could be wrong and we tell no 422 of ours: there none can be.
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]
