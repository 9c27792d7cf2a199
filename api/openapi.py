"""Completes FastAPI's OpenAPI document: our problems and events in place of FastAPI's errors, and what generators of
clients need: names of calls, no defaults to demand, a document for each API.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from api.dialects.dialect import Dialect
from api.problems import Problem, add_implied, speaks_problems
from serinette.batch import BatchRequest
from serinette.errors import NotFound
from serinette.views import JobEvent

_TAGS = {
    "jobs": "Songs: submit, follow, download, cancel, erase.",
    "batches": "Many songs in one request, released as the queue has room.",
    "uploads": "Audio to work on, and files for containers.",
    "containers": "An image and a command as a job, where the operator enables them.",
    "queue": "Lanes, workers and models.",
    "operator": "All pools and tenants, for keys with a right to see them.",
    "usage": "What the key's tenant used, and may.",
    "health": "Whether the gateway lives, is ready, and has workers.",
}
_OURS = "v1"

# Models of responses that routes do not declare to FastAPI.
_MODELS: tuple[type[BaseModel], ...] = (Problem, JobEvent, BatchRequest)

# Errors that calls of the dialects may answer beside those that their routes document, and which calls each belongs to.
_REFUSALS = {
    "400": ("The body cannot be read, or a field is wrong.", "every"),
    "401": ("The key is missing, unknown, expired or revoked.", "every"),
    "403": ("The tenant may not use this lane, or this page not this gateway.", "every"),
    "404": ("There is nothing of this id.", "by_id"),
    "409": ("The Idempotency-Key was used with another spec.", "keyed"),
    "413": ("The body is longer than is allowed.", "every"),
    "429": ("A limit is reached; `Retry-After` says when to try again.", "every"),
    "500": ("Internal error.", "every"),
    "503": ("The queue or the store does not answer; nothing was accepted.", "every"),
}
_REFUSAL = {
    "type": "object",
    "required": ["detail"],
    "properties": {"detail": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}},
}
_REFUSAL_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}

_STATIC = "static-offline-docs"


def page_routes() -> list[BaseRoute]:
    """`/docs` and what it loads: served here, because a cluster may not reach a CDN. Its URLs are relative, so that it
    works below any proxy's prefix.
    """
    html = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Serinette: the API",
        swagger_js_url=f"{_STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{_STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{_STATIC}/favicon.png",
    ).body
    (script,) = re.findall(rb"<script>(.*?)</script>", bytes(html), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    async def page(_: Request) -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})

    files = StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static")
    return [Route("/docs", page, include_in_schema=False), Mount(f"/{_STATIC}", files, name=_STATIC)]


def name_operations(app: FastAPI) -> None:
    """Give generated clients a name for each call, by that of its function: `submitJob` of `submit_job`."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            first, *others = route.name.split("_")
            route.operation_id = first + "".join(map(str.capitalize, others))


def add_heads(app: FastAPI) -> None:
    """HEAD wherever GET is, which FastAPI leaves out; the server sends no body with it. Behind all others, so that
    none of them is found later.
    """
    for route in [route for route in app.routes if isinstance(route, APIRoute) and "GET" in (route.methods or ())]:
        head = copy.copy(route)
        head.methods, head.include_in_schema = {"HEAD"}, False
        app.router.routes.append(head)


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
        describe_defaults(document)
        document["security"] = [{"key": []}, {}]  # a key is optional: the operator decides
        for path, methods in document["paths"].items():
            for operation in methods.values():
                is_ours = speaks_problems(path, app)
                if is_ours or never_422.intersection(operation["tags"]):
                    _drop_foreign_errors(operation["responses"])
                if not is_ours:
                    _add_refusals(path, operation)
                elif path.startswith("/v1/"):
                    add_implied(path, operation)
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


def _add_components(components: dict[str, Any]) -> None:
    for model in _MODELS:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        components["schemas"] |= {**schema.pop("$defs", {}), model.__name__: schema}
    components["schemas"]["Refusal"] = _REFUSAL
    components["responses"] = {
        f"Refusal{status}": {"description": why, "content": _REFUSAL_BODY} for status, (why, _) in _REFUSALS.items()
    }
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}


def _add_refusals(path: str, operation: dict[str, Any]) -> None:
    for status, answer in operation["responses"].items():
        if status >= "400" and "$ref" not in answer:
            answer.setdefault("content", _REFUSAL_BODY)
    kinds = {"every"} | ({"by_id"} if "{" in path else set())
    kinds |= {"keyed" for parameter in operation.get("parameters", ()) if parameter["name"] == "Idempotency-Key"}
    for status, (_, kind) in _REFUSALS.items():
        if kind in kinds:
            operation["responses"].setdefault(status, {"$ref": f"#/components/responses/Refusal{status}"})


def _drop_foreign_errors(responses: dict[str, Any]) -> None:
    # FastAPI documents its own 422 on each route with parameters; ours that can answer 422 document it themselves.
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]


def documents(whole: dict[str, Any], dialects: Sequence[Dialect]) -> dict[str, dict[str, Any]]:
    """A document for each API, by its name: ours is `v1`, a dialect's that of its folder. Pure."""
    theirs = {dialect.tag: dialect.name for dialect in dialects}
    found: dict[str, dict[str, Any]] = {}
    for name in (_OURS, *theirs.values()):
        paths = {
            path: own
            for path, calls in whole["paths"].items()
            if (own := {method: call for method, call in calls.items() if theirs.get(call["tags"][0], _OURS) == name})
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


def describe_defaults(document: dict[str, Any]) -> None:
    """Say in words what is used for a field that is left out, where only requests have it: openapi-typescript takes a
    field with a default for a field that is always there, and would demand it of clients.
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
