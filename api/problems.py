"""The table from errors to HTTP statuses, and the shapes of error responses.

Our own paths answer RFC 9457 problems; the dialects of other servers their `{"detail": ...}`.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, JsonValue
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from api.lean_route import headers_of as headers_of_scope
from api.lean_route import is_json
from api.outages import machine_error
from serinette import errors
from serinette.errors import (
    InvalidBatch,
    InvalidSpec,
    Limited,
    QueueFull,
    QueueUnavailable,
    RequestError,
    SerinetteError,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownPath,
    UnsupportedMediaType,
)

_Error = TypeVar("_Error", bound=Exception)
log = logging.getLogger(__name__)

# The entry of the nearest base class counts.
STATUS: dict[type[SerinetteError], int] = {
    SerinetteError: 500,
    RequestError: 400,
    errors.InvalidSpec: 422,
    errors.InvalidAudio: 422,
    errors.TooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.Unsupported: 501,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.LaneNotAllowed: 403,
    errors.Limited: 429,
    errors.Unavailable: 503,
}
RETRY_AFTER_S = 2
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
# FastAPI's message for a body that its JSON parser cannot read, and ours.
_UNREADABLE = "There was an error parsing the body"
_UNREADABLE_HERE = "the body cannot be read as JSON: send UTF-8, not compressed, no deep nesting, no endless numbers"
MEDIA_TYPE = "application/problem+json"
_SCHEMA = {"$ref": "#/components/schemas/Problem"}
# What every route below /v1 may answer: keys and rates are checked before all of them.
_EVERYWHERE = frozenset({"unauthorized", "rate_limited", "queue_unavailable", "internal"})
# What is named in a path may be missing, or be kept in the store alone.
_OF_PATHS = frozenset({"not_found", "store_unavailable"})
_OF_JSON = frozenset({"bad_request", "invalid_spec", "unsupported_media_type"})

Responses = dict[int | str, dict[str, Any]]


def _tree(root: type[SerinetteError]) -> Iterator[type[SerinetteError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


CODES = {kind.code: kind for kind in _tree(SerinetteError)}


class ProblemLine(BaseModel):
    """What is wrong with one line of a batch."""

    line: int = Field(description="From 1.")
    field: str | None = None
    message: str


class Problem(BaseModel):
    """RFC 9457, with a closed `code` for programs and `retryable` for loops."""

    type: str = Field(description="URN of the code.", examples=["urn:serinette:problem:invalid_spec"])
    title: str = Field(description="The code in words; of `bad_request` the status.")
    status: int = Field(description="The HTTP status, again.", examples=[422])
    detail: str = Field(description="What was wrong, what is allowed, what to do.")
    code: str = Field(json_schema_extra={"enum": list[JsonValue](sorted(CODES))})
    retryable: bool = Field(description="Whether the same request may pass later.")
    field: str | None = Field(None, description="The field, query parameter or header that was wrong.")
    instance: str = Field(description="Path of the request.")
    errors: list[ProblemLine] | None = Field(None, description="What is wrong in which line of a batch; not all of it.")


def status_of(error: SerinetteError) -> int:
    """The HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem_of(error: SerinetteError, path: str, status: int | None = None) -> Problem:
    """An error as a problem of our own paths."""
    status = status or status_of(error)
    title = inspect.getdoc(CODES[error.code]) or error.code
    if error.code == RequestError.code:  # the status says more than "the request is wrong"
        title = HTTPStatus(status).phrase
    return Problem(
        type=f"urn:serinette:problem:{error.code}",
        title=title.partition("\n")[0].rstrip("."),
        status=status,
        detail=error.message,
        code=error.code,
        retryable=error.retryable,
        field=error.field,
        instance=path,
        errors=[ProblemLine(line=line, field=field, message=message) for line, field, message in error.lines]
        if isinstance(error, InvalidBatch)
        else None,
    )


def problems(*codes: str) -> Responses:
    """The problems that a route may answer, for its entry in the OpenAPI document, an example each. What its path,
    parameters and body imply need not be named: see `add_implied`.
    """
    found: Responses = {}
    for code in codes:
        title = (CODES[code].__doc__ or code).partition("\n")[0]
        error = CODES[code](title)
        status, example = status_of(error), problem_of(error, "/v1/...").model_dump(exclude_none=True)
        entry = found.setdefault(
            status, {"description": "", "content": {MEDIA_TYPE: {"schema": _SCHEMA, "examples": {}}}}
        )
        entry["description"] = f"{entry['description']} {title}".strip()
        entry["content"][MEDIA_TYPE]["examples"][code] = {"value": example}
    return found


def add_implied(path: str, operation: dict[str, Any]) -> None:
    """Add to a documented call of ours the problems that any call of its shape may answer. Idempotent."""
    answers, implied = operation["responses"], set(_EVERYWHERE)
    bodies = operation.get("requestBody", {}).get("content", {})
    implied |= _OF_PATHS if "{" in path else set()
    implied |= {"too_large"} if bodies else set()
    implied |= _OF_JSON if "application/json" in bodies else set()
    implied |= {"invalid_spec" for parameter in operation.get("parameters", ()) if parameter["in"] == "query"}
    for answer in answers.values():
        implied |= answer.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {}).keys()
    answers |= {str(status): entry for status, entry in problems(*sorted(implied)).items()}


def speaks_problems(path: str, app: Starlette) -> bool:
    """Whether errors on this path are problems: on our own paths, so below /v1 except for paths of dialects."""
    if not path.startswith("/v1/"):
        return path in {"/healthz", "/readyz", "/v1"}
    return path.split("/")[2] not in app.state.dialects_below_v1


def headers_of(error: SerinetteError) -> dict[str, str]:
    """Response headers of an error, in every dialect."""
    match error:
        case Unavailable():
            return {"Retry-After": str(RETRY_AFTER_S)}
        case Limited(retry_after_s=float() | int() as retry_after_s):
            return {"Retry-After": str(max(1, math.ceil(retry_after_s)))}
        case Unauthorized():
            return {"WWW-Authenticate": 'Bearer realm="serinette"'}
        case TooLarge():  # stops a client that is still sending
            return {"Connection": "close"}
    return {}


def answer(
    scope: Scope,
    error: SerinetteError,
    status: int | None = None,
    headers: dict[str, str] | None = None,
    detail: str | Sequence[object] | None = None,
) -> JSONResponse:
    """The response for an error on the scope's path; `detail` replaces the message on paths of dialects."""
    code, path = status or status_of(error), scope["path"]
    headers = {**headers_of(error), **(headers or {})}
    if not speaks_problems(path, scope["app"]):
        return JSONResponse({"detail": error.message if detail is None else detail}, code, headers)
    body = problem_of(error, path, code).model_dump(exclude_none=True)
    return JSONResponse(body, code, headers, media_type=MEDIA_TYPE)


def install(app: FastAPI, dialect_paths: Iterable[str]) -> None:
    """Answer every error of this application by the table above, also to a WebSocket that is not accepted yet."""
    app.state.dialects_below_v1 = {path.split("/")[2] for path in dialect_paths if path.startswith("/v1/")}
    app.exception_handler(SerinetteError)(_on_own)
    app.exception_handler(RequestValidationError)(_on_invalid)
    app.exception_handler(WebSocketRequestValidationError)(_on_invalid)
    app.exception_handler(HTTPException)(_on_http)
    app.exception_handler(ClientDisconnect)(_on_gone)
    app.exception_handler(OSError)(_on_machine)
    app.exception_handler(Exception)(_on_unexpected)


async def explained(app: Starlette, error: _Error) -> _Error | QueueFull:
    """The error, of a queue that is away with the likely reason if there is one."""
    if type(error) is QueueUnavailable and (parts := getattr(app.state, "parts", None)) is not None:
        # Under `serinette up` queue and store share a disk, and Valkey ends when it is full.
        shares = parts.settings.redis_url.get_secret_value().startswith("unix:")
        if shares and (full := await to_thread.run_sync(parts.store.full_disk)):
            return QueueFull(f"the queue does not answer, probably because {full}")
    return error


async def _on_own(connection: HTTPConnection, error: SerinetteError) -> Response:
    error = await explained(connection.app, error)
    if status_of(error) >= 500:
        log.warning("%s: %s: %s (%r)", connection.scope["path"], error.code, error.message, error.__cause__)
    return answer(connection.scope, error)


async def _on_invalid(
    connection: HTTPConnection, error: RequestValidationError | WebSocketRequestValidationError
) -> Response:
    complaints = error.errors()
    detail = [{"loc": list(c["loc"]), "msg": c["msg"], "type": c["type"]} for c in complaints]
    own = invalid(complaints[0])
    if complaints[0]["loc"] == ("body",) and not is_json(headers_of_scope(connection.scope)):
        own = UnsupportedMediaType("Content-Type: send Content-Type: application/json", field="Content-Type")
    return answer(connection.scope, own, detail=detail)


def invalid(complaint: Mapping[str, Any]) -> RequestError:
    """Our error for FastAPI's or pydantic's first error."""
    if complaint["type"] == "json_invalid":
        return RequestError(f"the body is not JSON: {complaint.get('ctx', {}).get('error', 'it cannot be read')}")
    message = complaint["msg"].removeprefix("Value error, ")
    field = ".".join(str(part) for part in complaint["loc"][1:])
    if not field and ":" in message:
        field = message.partition(":")[0]
    if not field:
        return InvalidSpec(f"the {complaint['loc'][0]}: {message}")
    return InvalidSpec(message if message.startswith(f"{field}:") else f"{field}: {message}", field=field)


async def _on_http(connection: HTTPConnection, error: HTTPException) -> Response:
    path = connection.scope["path"]
    if (full := machine_error(error.__cause__)) is not None:  # while a body was read
        return await _on_own(connection, full)
    if error.detail == _UNREADABLE:
        return answer(connection.scope, RequestError(_UNREADABLE_HERE))
    kinds: dict[int, type[SerinetteError]] = {404: UnknownPath, 413: TooLarge}
    own = kinds.get(error.status_code, RequestError if error.status_code < 500 else SerinetteError)
    messages = {
        404: f"there is nothing at {path}; /docs lists what there is",
        405: f"{connection.scope.get('method', 'this method')} is not for {path}; the Allow header says what is",
    }
    is_default = error.detail == HTTPStatus(error.status_code).phrase
    message = messages.get(error.status_code, error.detail) if is_default else str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # Starlette's header has the methods of the first route only
        headers["Allow"] = ", ".join(_allowed(connection))
    detail = message if is_default and own is UnknownPath else error.detail
    return answer(connection.scope, own(message), error.status_code, headers, detail=detail)


def _allowed(connection: HTTPConnection) -> Iterator[str]:
    for method in _METHODS:
        scope = {**connection.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in connection.app.routes):
            yield method


async def _on_gone(connection: HTTPConnection, error: ClientDisconnect) -> Response:
    # The client is gone; this only avoids a traceback in the log for every aborted upload.
    return answer(connection.scope, RequestError("the request broke off before its end"))


async def _on_machine(connection: HTTPConnection, error: OSError) -> Response:
    full = machine_error(error)
    if full is None:
        raise error  # answered, and logged, as unexpected
    full.__cause__ = error
    return await _on_own(connection, full)


async def _on_unexpected(connection: HTTPConnection, error: Exception) -> Response:
    # Starlette raises it again after the response, so that the log has the traceback and the client does not.
    request_id = connection.scope.get("serinette.request_id", "")
    own = SerinetteError(f"something went wrong here; the server's log says what, of request {request_id}")
    return answer(connection.scope, own, headers={"X-Request-Id": request_id}, detail="Internal Server Error")
