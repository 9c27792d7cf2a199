"""Middleware of every request: keys, authentication. Pure ASGI.

Every path that is not listed as public here needs a key, so that a route cannot forget it. A key may be in the header,
in the path (`/k/{key}/...`, for clients that cannot send headers; it is removed there, so that no log and no response
contains it) or, as clients of ACE-Step 1.5 send it, in the field `ai_token` of a small body. Such a body is read before
its caller is known, and therefore only on that dialect's paths, of requests without another key, with a declared and
small length, as JSON or a form without files. The body is passed on unchanged.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth.keyring import Caller, Keyring
from api.auth.limits import RequestRate
from api.auth.links import Links, opened_by_link
from api.lean_route import replayed, whole_body
from api.problems import answer
from serinette.errors import NotFound, SerinetteError, Unauthorized

KEY_IN_PATH = "serinette.key"
_PREFIX = "/k/"


class KeyInPathMiddleware:
    """Removes the key from the path; answers 404 if keys in paths are not `allowed`."""

    def __init__(self, app: ASGIApp, allowed: bool) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the path without the key."""
        if scope["type"] not in {"http", "websocket"} or not scope["path"].startswith(_PREFIX):
            return await self._app(scope, receive, send)
        key, slash, rest = scope["path"].removeprefix(_PREFIX).partition("/")
        if not (self._allowed and key and slash):
            refusal = NotFound("no key may stand in the path here; send it as `Authorization: Bearer ...`")
            return await answer(scope, refusal)(scope, receive, send)
        path = f"/{rest}"
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")

        async def relative(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                headers = [(name, _relative(name, value, path, host)) for name, value in message.get("headers", ())]
                message = {**message, "headers": headers}
            await send(message)

        # In place, so that outer middleware does not see the key afterwards either.
        scope.update({"path": path, "raw_path": quote(path).encode(), KEY_IN_PATH: key})
        return await self._app(scope, receive, relative)


def _relative(name: bytes, value: bytes, path: str, host: str) -> bytes:
    if name.lower() != b"location":
        return value
    return relative_location(value.decode("latin-1"), path, host).encode("latin-1")


def relative_location(location: str, path: str, host: str) -> str:
    """A `Location` of this host as seen from `path`; one of another host as it is (RFC 9110, 10.2.2)."""
    parts = urlsplit(location)
    if (parts.netloc and parts.netloc != host) or not parts.path.startswith("/"):
        return location
    directory, _, name = parts.path.rpartition("/")
    relative = posixpath.relpath(directory or "/", posixpath.dirname(path))
    # A colon in the first segment would make it a scheme.
    to = f"{relative}/{name}" if relative.startswith(".") else f"./{relative}/{name}"
    return f"{to}?{parts.query}" if parts.query else to


# Longest body that is searched for a key; documented fields fit, audio codes may not.
MOST_BYTES = 65_536
_NAMES = ("ai_token", "aiToken")


async def _key_in_body(scope: Scope, receive: Receive) -> tuple[str | None, Receive]:
    """The key in a request's body, and what receives that body once more. Raises ClientDisconnect."""
    body = await whole_body(receive)
    content_type = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
    return key_of(content_type, body), replayed(body, receive)


def key_of(content_type: str, body: bytes) -> str | None:
    """The key in a body of JSON or of a form; None where there is none, or the body is neither. Pure."""
    kind = content_type.partition(";")[0].strip().lower()
    fields: Any = None
    try:
        if kind == "application/json" or body.lstrip()[:1] == b"{":
            fields = json.loads(body)
        elif kind in {"application/x-www-form-urlencoded", ""}:
            fields = dict(parse_qsl(body.decode(), max_num_fields=256))
    except (ValueError, RecursionError):
        return None  # the route reports the malformed body
    if not isinstance(fields, dict):
        return None
    found = next((fields[name] for name in _NAMES if name in fields), None)
    return found if isinstance(found, str) and found else None


# Probes, metrics (which name no job and no tenant), and the API's documentation.
PUBLIC = frozenset({"/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"})
# Static files of the API's documentation and of the studio.
_PAGES = ("/static-offline-docs/", "/studio/", "/openapi/")


def is_public(path: str) -> bool:
    """Whether this path needs no key. No route there reads a body."""
    return path in PUBLIC or path.startswith(_PAGES)


CALLER = "serinette.caller"
_REALM = 'Bearer realm="serinette"'


@dataclass(frozen=True, slots=True)
class CallerLookup:
    """Rate limit, keys and signed links: all that a caller is found by."""

    rate: RequestRate
    keyring: Keyring
    links: Links


class AuthMiddleware:
    """Puts the authenticated caller into the scope; answers 401 without a valid key, 429 above the rate limit. On
    `body_paths` the key may be in the body.
    """

    def __init__(self, app: ASGIApp, callers: CallerLookup, body_paths: Collection[str] = ()) -> None:
        self._app = app
        self._callers = callers
        self._body_paths = frozenset(body_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if its caller is authenticated."""
        if scope["type"] not in {"http", "websocket"} or is_public(scope["path"]):
            return await self._app(scope, receive, send)
        key = scope.get(KEY_IN_PATH) or _bearer(scope)
        if key is None and self._may_be_in_body(scope):
            try:
                key, receive = await _key_in_body(scope, receive)
            except ClientDisconnect:
                return None
        token = None
        if scope.get("query_string"):
            token = _token(scope)
            scope["query_string"] = _without_token(scope)  # because uvicorn logs the URL of every WebSocket
        try:
            caller = await self._caller(scope, key, token)
            await self._callers.rate.count(caller.tenant, caller.limits.requests_per_minute)
        except SerinetteError as error:
            invalid = ', error="invalid_token"' if key or token else ""
            challenge = {"WWW-Authenticate": _REALM + invalid} if isinstance(error, Unauthorized) else None
            return await answer(scope, error, headers=challenge)(scope, receive, send)
        scope[CALLER] = caller  # in place, because outer middleware reads the route from the same scope
        return await self._app(scope, receive, send)

    def _may_be_in_body(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._body_paths:
            return False
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        return b"authorization" not in headers and length.isdigit() and 0 < int(length[:20]) <= MOST_BYTES

    async def _caller(self, scope: Scope, key: str | None, token: str | None) -> Caller:
        # A WebSocket begins as a GET request.
        opened = opened_by_link(scope.get("method", "GET"), scope["path"])
        if key is None and token is not None and opened is not None:
            return await self._callers.links.caller(token, *opened)
        return await self._callers.keyring.caller(key)


def _bearer(scope: Scope) -> str | None:
    sent = next((value for name, value in reversed(scope["headers"]) if name == b"authorization"), b"")
    scheme, space, key = sent.decode("latin-1").strip().partition(" ")
    if not space:
        return scheme or None  # ACE-Step 1.5 accepts a key without a scheme, too
    return (key.strip() or None) if scheme.lower() == "bearer" else None


def _without_token(scope: Scope) -> bytes:
    query: bytes = scope.get("query_string", b"")
    return b"&".join(part for part in query.split(b"&") if not part.startswith(b"token="))


def _token(scope: Scope) -> str | None:
    query = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
    return next((value for name, value in query if name == "token"), None)
