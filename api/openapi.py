"""Completes FastAPI's OpenAPI document: our problems and events in place of FastAPI's errors, ids of operations that
clients can be generated from, and a document for each API beside the one of all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.dialects.dialect import Dialect
from api.events import JobEvent
from api.problems import Problem, speaks_problems
from serinette.batch import BatchRequest
from serinette.errors import NotFound

# Models of responses that routes do not declare to FastAPI.
_MODELS: tuple[type[BaseModel], ...] = (Problem, JobEvent, BatchRequest)

# Errors that paths of the dialects may answer beside those that their routes document.
_REFUSALS = {
    "400": "The body cannot be read, or a field is wrong.",
    "401": "The key is missing, unknown, expired or revoked.",
    "413": "The body is longer than is allowed.",
    "429": "A limit is reached; `Retry-After` says when to try again.",
    "500": "Internal error.",
    "503": "The queue or the store does not answer; nothing was accepted.",
}
_REFUSAL = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}},
}


# Names that generated clients give to our calls. A dialect's calls have those of their functions.
_OPERATIONS = {
    "GET /health": "getHealth",
    "GET /healthz": "isAlive",
    "GET /readyz": "isReady",
    "POST /v1/jobs": "submitJob",
    "GET /v1/jobs": "listJobs",
    "GET /v1/jobs/{job_id}": "getJob",
    "DELETE /v1/jobs/{job_id}": "eraseJob",
    "GET /v1/jobs/{job_id}/audio": "getJobAudio",
    "POST /v1/jobs/{job_id}/cancel": "cancelJob",
    "GET /v1/jobs/{job_id}/events": "followJob",
    "POST /v1/jobs/{job_id}/links": "linkJob",
    "GET /v1/jobs/{job_id}/log": "getJobLog",
    "GET /v1/jobs/{job_id}/outputs/{name}": "getJobOutput",
    "POST /v1/batches": "submitBatch",
    "GET /v1/batches": "listBatches",
    "GET /v1/batches/{batch_id}": "getBatch",
    "DELETE /v1/batches/{batch_id}": "eraseBatch",
    "POST /v1/batches/{batch_id}/cancel": "cancelBatch",
    "POST /v1/batches/{batch_id}/pause": "pauseBatch",
    "POST /v1/batches/{batch_id}/resume": "resumeBatch",
    "POST /v1/batches/{batch_id}/retry": "retryBatch",
    "GET /v1/batches/{batch_id}/lines": "listBatchLines",
    "GET /v1/batches/{batch_id}/output.jsonl": "getBatchOutput",
    "GET /v1/batches/{batch_id}/errors.jsonl": "getBatchErrors",
    "GET /v1/batches/{batch_id}/songs.zip": "getBatchSongs",
    "POST /v1/containers": "submitContainer",
    "POST /v1/files": "uploadFile",
    "POST /v1/uploads": "uploadAudio",
    "GET /v1/uploads/{upload_id}": "getUpload",
    "DELETE /v1/uploads/{upload_id}": "eraseUpload",
    "POST /v1/uploads/{upload_id}/complete": "completeUpload",
    "GET /v1/models": "listModels",
    "GET /v1/queue": "getQueue",
    "GET /v1/workers": "listWorkers",
    "GET /v1/usage": "getUsage",
}
_TAGS = {
    "jobs": "Songs: submit, follow, download, cancel, erase.",
    "batches": "Many songs in one request, released as the queue has room.",
    "uploads": "Audio to work on, and files for containers.",
    "containers": "An image and a command as a job, where the operator enables them.",
    "queue": "Lanes, workers and models.",
    "usage": "What the key's tenant used, and may.",
    "health": "Whether the gateway lives, is ready, and has workers.",
}
OURS = "v1"


def documents(whole: dict[str, Any], dialects: Sequence[Dialect]) -> dict[str, dict[str, Any]]:
    """A document for each API, by its name: ours is `v1`, a dialect's that of its folder. Pure."""
    theirs = {dialect.tag: dialect.name for dialect in dialects}
    found: dict[str, dict[str, Any]] = {}
    for name in (OURS, *theirs.values()):
        paths = {
            path: own
            for path, calls in whole["paths"].items()
            if (own := {method: call for method, call in calls.items() if theirs.get(call["tags"][0], OURS) == name})
        }
        tags = {call["tags"][0] for calls in paths.values() for call in calls.values()}
        found[name] = {
            **whole,
            "info": {**whole["info"], "title": f"{whole['info']['title']}: {name}"},
            "tags": [tag for tag in whole["tags"] if tag["name"] in tags],
            "paths": paths,
            "components": _used(whole["components"], paths),
        }
    return found


def _used(components: dict[str, Any], paths: object) -> dict[str, Any]:
    """The components that paths refer to, and those that these refer to."""
    used: dict[str, Any] = {"securitySchemes": components.get("securitySchemes", {})}
    left = _references(paths)
    while left:
        kind, name = left.pop().split("/")[2:]
        if name not in used.setdefault(kind, {}):
            used[kind][name] = components[kind][name]
            left |= _references(used[kind][name])
    return used


def _references(part: object) -> set[str]:
    if isinstance(part, dict):
        own = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return own.union(*map(_references, part.values()))
    return set().union(*map(_references, part)) if isinstance(part, list) else set()


def _named(method: str, path: str, operation: dict[str, Any]) -> str:
    function = operation["operationId"].removesuffix(re.sub(r"\W", "_", f"{path}_{method}"))  # FastAPI's
    first, *rest = function.split("_")
    return _OPERATIONS.get(f"{method.upper()} {path}") or first + "".join(word.capitalize() for word in rest)


def complete(app: FastAPI, dialects: Sequence[Dialect]) -> None:
    """Make the application serve the completed document, and one for each API at /openapi/NAME.json."""
    generate = app.openapi
    app.openapi_tags = [
        {"name": name, "description": about}
        for name, about in (_TAGS | {dialect.tag: dialect.about for dialect in dialects}).items()
    ]
    never_422 = {dialect.tag for dialect in dialects if not dialect.answers_422}

    def openapi() -> dict[str, Any]:
        document = generate()
        _add_components(document["components"])
        _describe_defaults(document)
        document["security"] = [{"key": []}, {}]  # a key is optional: the operator decides
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                operation["operationId"] = _named(method, path, operation)
                answers = operation["responses"]
                if speaks_problems(path, app) or never_422.intersection(operation["tags"]):
                    _drop_foreign_errors(answers)
                if not speaks_problems(path, app):
                    for status in _REFUSALS:
                        answers.setdefault(status, {"$ref": f"#/components/responses/Refusal{status}"})
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents

    @cache
    def parts() -> dict[str, dict[str, Any]]:
        return documents(openapi(), dialects)

    async def part(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in parts():
            raise NotFound(f"there is no document {name}; there are {', '.join(parts())}")
        return JSONResponse(parts()[name])

    app.add_route("/openapi/{name}.json", part, include_in_schema=False)


def _describe_defaults(document: dict[str, Any]) -> None:
    """Say in words what is used for a field that is left out, where only requests have it: openapi-typescript takes a
    field with a default for one that is always there, and would demand it of clients.
    """
    calls = [call for calls in document["paths"].values() for call in calls.values()]
    components = document["components"]
    asked = _used(components, [call.get("requestBody", {}) for call in calls]).get("schemas", {})
    answered = _used(components, [call["responses"] for call in calls]).get("schemas", {})
    for schema in (asked[name] for name in asked.keys() - answered.keys()):
        for part in schema.get("properties", {}).values():
            default = part.pop("default", None)
            if default not in (None, "", [], {}):
                part["description"] = f"{part.get('description', '')} Default: {json.dumps(default)}.".lstrip()


def _add_components(components: dict[str, Any]) -> None:
    for model in _MODELS:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components["schemas"] |= {**schema.pop("$defs", {}), model.__name__: schema}
    components["schemas"]["Refusal"] = _REFUSAL
    components["responses"] = {f"Refusal{status}": _refusal(why) for status, why in _REFUSALS.items()}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}


def _drop_foreign_errors(responses: dict[str, Any]) -> None:
    # FastAPI documents its own 422 on each route with parameters; ours that can answer 422 document it themselves.
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]


def _refusal(why: str) -> dict[str, Any]:
    return {"description": why, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}}
