"""Completes FastAPI's OpenAPI document: our problems and events in place of FastAPI's errors."""

from __future__ import annotations

import base64
import copy
import hashlib
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
from api.events import JobEvent
from api.openapi_parts import TAGS, describe_defaults, documents, operation_id
from api.problems import Problem, add_implied, speaks_problems
from serinette.batch import BatchRequest
from serinette.errors import NotFound

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
    """Give generated clients a name for each call."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            route.operation_id = operation_id(route.name)


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
        for name, about in (TAGS | {dialect.tag: dialect.about for dialect in dialects}).items()
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
