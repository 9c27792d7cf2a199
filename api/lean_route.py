"""FastAPI's route with a direct call of the most frequent endpoints.

FastAPI resolves each parameter of a request as a dependency, which is half of the cost of a poll or a submit. Here an
endpoint that takes only the request, path parameters, headers and one JSON body, and that returns a Response, is called
directly with parameters parsed by its annotations. The OpenAPI document is still FastAPI's, and a request that does not
validate is passed to FastAPI, which answers with its error.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, get_args, get_type_hints

from fastapi import params
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serinette.errors import UnsupportedMediaType

Endpoint = Callable[..., Awaitable[Response]]
# Reads one parameter from a request and its body. Raises ValidationError.
Read = Callable[[Request, bytes], object]


class LeanRoute(APIRoute):
    """The class of our routes. A route with a JSON body refuses every other media type with 415.

    `is_lean`: its endpoint is called directly.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401  # FastAPI's
        super().__init__(path, endpoint, **options)
        takes_json = self.body_field is not None and type(self.body_field.field_info) is params.Body
        reads = _reads(endpoint) if not self.dependencies else None
        self.is_lean = reads is not None
        if reads is not None:
            self.app = _Lean(endpoint, reads, self.app, takes_json=takes_json)
        elif takes_json:
            self.app = _json_only(self.app)


def _reads(endpoint: Endpoint) -> dict[str, Read] | None:
    """Readers of an endpoint's parameters; None when its signature needs FastAPI."""
    hints = get_type_hints(endpoint, include_extras=True)
    if hints.get("return") is not Response:
        return None
    found: dict[str, Read] = {}
    for name, parameter in inspect.signature(endpoint).parameters.items():
        read = _read(name, hints[name], parameter.default)
        if read is None:
            return None
        found[name] = read
    return found


def _read(name: str, hint: Any, default: object) -> Read | None:  # noqa: ANN401  # an annotation
    if hint is Request:
        return lambda request, _: request
    about = [each for each in get_args(hint)[1:] if isinstance(each, (params.Param, params.Body))]
    adapter: TypeAdapter[object] | None = TypeAdapter(hint) if about else None
    match about, adapter:
        case [params.Path()], TypeAdapter() as path:
            return lambda request, _: path.validate_python(request.path_params[name])
        case [params.Header() as header], TypeAdapter() as sent if default is None:
            return _header((header.alias or name.replace("_", "-")).lower(), sent)
        case [params.Form()], _:
            return None
        case [params.Body()], TypeAdapter() as whole:
            return lambda _, body: whole.validate_json(body)
    return None


def _header(name: str, adapter: TypeAdapter[object]) -> Read:
    def read(request: Request, _: bytes) -> object:
        sent = request.headers.get(name)
        return None if sent is None else adapter.validate_python(sent)

    return read


class _Lean:
    """Calls an endpoint with the parameters that `reads` return; `otherwise` is FastAPI's own handler."""

    def __init__(self, endpoint: Endpoint, reads: dict[str, Read], otherwise: ASGIApp, *, takes_json: bool) -> None:
        self._endpoint = endpoint
        self._reads = reads
        self._otherwise = otherwise
        self._takes_json = takes_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        body = b""
        if self._takes_json:
            _require_json(request)
            body = await request.body()
        try:
            values = {name: read(request, body) for name, read in self._reads.items()}
        except ValidationError:  # FastAPI's handler reports the error
            again = _replayed(body, receive) if self._takes_json else receive
            return await self._otherwise(scope, again, send)
        response = await self._endpoint(**values)
        return await response(scope, receive, send)


def _json_only(app: ASGIApp) -> ASGIApp:
    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        _require_json(Request(scope))
        await app(scope, receive, send)

    return refusing


def _require_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    family, _, name = kind.partition("/")
    if family != "application" or "/" in name or not (name == "json" or name.endswith("+json")):
        raise UnsupportedMediaType("Content-Type: send Content-Type: application/json", field="Content-Type")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive channel that returns the body already read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
