"""FastAPI's route with a direct call of the most frequent endpoints.

FastAPI resolves each parameter of a request as a dependency, which is half of the cost of a poll or a submit. Here an
endpoint that takes only the request, path parameters, headers and one JSON body, and that returns a Response, is called
directly with parameters parsed by its annotations. The OpenAPI document is still FastAPI's, and a request that does not
validate is passed to FastAPI, which answers with its error.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from fastapi import params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.forms import TEXT_BYTES
from serinette.errors import SerinetteError

Endpoint = Callable[..., Awaitable[Response]]
Headers = Mapping[bytes, bytes]
Refuse = Callable[[Exception], Response | None]
# Reads one parameter from a request, its headers and its body. Raises ValidationError.
Read = Callable[[Request, Headers, bytes], object]

# What a route's API may answer in its own shape.
REFUSALS = (RequestValidationError, HTTPException, SerinetteError)


class LeanRoute(APIRoute):
    """The class of our routes. `is_lean`: its endpoint is called directly."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401  # FastAPI's
        super().__init__(path, endpoint, **options)
        takes_json = self.body_field is not None and type(self.body_field.field_info) is params.Body
        reads = _reads(endpoint) if not self.dependencies else None
        self.is_lean = reads is not None
        if reads is not None:
            self.app = _Lean(endpoint, reads, self.app, self.refuse, takes_json=takes_json)

    def refuse(self, error: Exception) -> Response | None:  # dialects have their own
        """An error in the shape of the route's API; None: as the gateway answers it everywhere."""
        return None


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
        return lambda request, _, __: request
    about = [each for each in get_args(hint)[1:] if isinstance(each, (params.Param, params.Body))]
    adapter: TypeAdapter[object] | None = TypeAdapter(hint) if about else None
    match about, adapter:
        case [params.Path()], TypeAdapter() as path:
            return lambda request, _, __: path.validate_python(request.path_params[name])
        case [params.Header() as header], TypeAdapter() as sent if default is None:
            return _header((header.alias or name.replace("_", "-")).lower(), sent)
        case [params.Form()], _:
            return None
        case [params.Body()], TypeAdapter() as whole:
            return lambda _, __, body: whole.validate_json(body)
    return None


def _header(name: str, adapter: TypeAdapter[object]) -> Read:
    wire_name = name.encode()

    def read(_: Request, headers: Headers, __: bytes) -> object:
        sent = headers.get(wire_name)
        return None if sent is None else adapter.validate_python(sent.decode("latin-1"))

    return read


class _Lean:
    """Calls an endpoint with the parameters that `reads` return; `otherwise` is FastAPI's own handler."""

    def __init__(
        self, endpoint: Endpoint, reads: dict[str, Read], otherwise: ASGIApp, refuse: Refuse, *, takes_json: bool
    ) -> None:
        self._endpoint = endpoint
        self._reads = reads
        self._otherwise = otherwise
        self._refuse = refuse
        self._takes_json = takes_json

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = headers_of(scope)
        if self._takes_json and (TEXT_BYTES in scope or not is_json(headers)):
            return await self._otherwise(scope, receive, send)
        body, response = b"", None
        try:
            if self._takes_json:
                body = await whole_body(receive)
            values = self._values(Request(scope, receive, send), headers, body)
            if values is not None:
                response = await self._endpoint(**values)
        except REFUSALS as error:
            response = self._refuse(error)
            if response is None:
                raise
        if response is None:  # FastAPI's handler reports what is wrong with the request
            again = replayed(body, receive) if self._takes_json else receive
            await asyncio.sleep(0)  # it reads a long body once more: others come first
            return await self._otherwise(scope, again, send)
        return await response(scope, receive, send)

    def _values(self, request: Request, headers: Headers, body: bytes) -> dict[str, object] | None:
        try:
            return {name: read(request, headers, body) for name, read in self._reads.items()}
        except ValidationError:
            return None


class RouteIndex(BaseRoute):
    """Finds a route without path parameters by its path. As the first of all routes it spares the others' patterns, of
    which a request is otherwise compared with up to fifty.
    """

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._found: dict[tuple[str, str], APIRoute] = {}
        for route in routes:
            if isinstance(route, APIRoute) and "{" not in route.path:
                for method in route.methods or ():
                    if _first_match(routes, method, route.path) is route:
                        self._found[method, route.path] = route

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As the route itself matches; no match without one."""
        route = self._found.get((scope.get("method", ""), scope.get("path", "")))
        return route.matches(scope) if route else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on to the route."""
        await scope["route"].handle(scope, receive, send)


def _first_match(routes: Sequence[BaseRoute], method: str, path: str) -> BaseRoute | None:
    scope: Scope = {"type": "http", "method": method, "path": path}
    return next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)


def headers_of(scope: Scope) -> Headers:
    """The headers of a request by their lower-case names; of several with one name the first."""
    return dict(reversed(scope["headers"]))


async def whole_body(receive: Receive) -> bytes:
    """The body. Raises ClientDisconnect."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def is_json(headers: Headers) -> bool:
    """Whether a request says that its body is JSON."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    family, _, name = kind.partition(b"/")
    return family == b"application" and b"/" not in name and (name == b"json" or name.endswith(b"+json"))


def replayed(body: bytes, receive: Receive) -> Receive:
    """A receive channel that returns a body which was read already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
