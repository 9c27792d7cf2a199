"""Asks every request for its key before anything else of the gateway sees it. Pure ASGI.

A route cannot forget it: what is not named as public here is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import answer
from api.tenancy.key_in_path import KEY_IN_PATH
from api.tenancy.keyring import Caller, Keyring
from api.tenancy.links import Links, job_opened_by_link
from api.tenancy.rate import RequestRate
from serinette.errors import SerinetteError, Unauthorized

# Signs of life for probes, numbers without jobs and tenants for Prometheus, and what the API looks like.
PUBLIC = frozenset(
    {"/", "/healthz", "/readyz", "/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
)
# What the API's page and the studio are made of.
_PAGES = ("/static-offline-docs/", "/studio/")
CALLER = "serinette.caller"
_REALM = 'Bearer realm="serinette"'


@dataclass(frozen=True, slots=True)
class Register:
    """What callers are looked up in."""

    rate: RequestRate
    keyring: Keyring
    links: Links


class Gatekeeper:
    """Lets known callers in, with who they are in the scope; the others are answered 401 and 429."""

    def __init__(self, app: ASGIApp, register: Register) -> None:
        self._app = app
        self._register = register

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it may."""
        if scope["type"] not in {"http", "websocket"} or scope["path"] in PUBLIC or scope["path"].startswith(_PAGES):
            return await self._app(scope, receive, send)
        key = scope.get(KEY_IN_PATH) or _bearer(scope)
        token = None
        if scope.get("query_string"):
            token = _token(scope)
            scope["query_string"] = _without_token(scope)  # uvicorn logs the URL of every WebSocket
        try:
            caller = await self._caller(scope, key, token)
            await self._register.rate.count(caller.tenant, caller.limits.requests_per_minute)
        except SerinetteError as error:
            invalid = ', error="invalid_token"' if key or token else ""
            challenge = {"WWW-Authenticate": _REALM + invalid} if isinstance(error, Unauthorized) else None
            return await answer(scope, error, headers=challenge)(scope, receive, send)
        scope[CALLER] = caller  # in place, as the router does: what is around us reads the route from the same scope
        return await self._app(scope, receive, send)

    async def _caller(self, scope: Scope, key: str | None, token: str | None) -> Caller:
        # A WebSocket begins as a GET.
        job_id = job_opened_by_link(scope.get("method", "GET"), scope["path"])
        if key is None and token is not None and job_id is not None:
            return await self._register.links.caller(token, job_id)
        return await self._register.keyring.caller(key)


def _bearer(scope: Scope) -> str | None:
    sent = next((value for name, value in reversed(scope["headers"]) if name == b"authorization"), b"")
    scheme, space, key = sent.decode("latin-1").strip().partition(" ")
    if not space:
        return scheme or None  # ACE-Step 1.5 takes a key without its scheme too
    return (key.strip() or None) if scheme.lower() == "bearer" else None


def _without_token(scope: Scope) -> bytes:
    query: bytes = scope.get("query_string", b"")
    return b"&".join(part for part in query.split(b"&") if not part.startswith(b"token="))


def _token(scope: Scope) -> str | None:
    query = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
    return next((value for name, value in query if name == "token"), None)
