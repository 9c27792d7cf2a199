"""What is checked of every request's head before anything else sees it: headers that may be sent once, who a gateway
without keys answers to, and the path's prefix that a proxy put in front.

A gateway without keys is reached by any page that a browser of its machine or network shows: by a plain form or a
`fetch` without a preflight, by a WebSocket, or by a name of the page's own that its DNS leads here. Browsers say in
`Origin` and `Host` where a request is from and which name it used.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import answer
from api.settings import GatewaySettings, checked_prefix
from serinette.errors import Forbidden, RequestError
from serinette.webhook import is_loopback

# Set in the scope: what a proxy put before our paths, `/music`; missing if there is nothing.
PREFIX = "serinette.prefix"
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
OPENAPI_PATH = "/openapi.json"

# Of two, one would be checked and the other used.
_ONCE = frozenset(
    {b"host", b"authorization", b"content-type", b"idempotency-key", b"range", b"origin", b"last-event-id"}
)
_PLAIN_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,4})?")
_READ = _ONCE | {b"x-forwarded-prefix", b"x-forwarded-host", b"sec-fetch-site"}


def prefix_of(scope: Scope) -> str:
    """What a proxy put before our paths."""
    prefix: str = scope.get(PREFIX, "")
    return prefix


class RequestChecks:
    """Refuses what no honest client sends, and takes the prefix from the path."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self._keyless = not settings.auth
        self._own_names_only = self._keyless and not settings.allow_anyone and is_loopback(settings.host)
        self._names = settings.hosts
        self._settings = settings
        self._prefix = settings.root_path
        self._proxies = settings.trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] not in {"http", "websocket"}:
            return await self._app(scope, receive, send)
        sent: dict[bytes, bytes] = {}
        twice = None
        for name, value in scope["headers"]:
            if name in _READ:
                if name in sent and name in _ONCE:
                    twice = name
                sent[name] = value
        if scope["path"] == self._prefix and self._prefix:  # the studio's relative addresses need the slash
            scope[PREFIX] = self._prefix
            return await RedirectResponse("/", 307)(scope, receive, send)
        self._take_prefix(scope, sent)
        # Browsers let any page open a WebSocket anywhere, and only say where the page is from.
        asks_origin = self._keyless or scope["type"] == "websocket"
        refusal = _malformed(scope, sent, twice) or (self._foreign(scope, sent) if asks_origin else None)
        if refusal is not None:
            return await answer(scope, refusal, headers={"Connection": "close"})(scope, receive, send)
        return await self._app(scope, receive, send)

    def _take_prefix(self, scope: Scope, sent: dict[bytes, bytes]) -> None:
        prefix, path = self._prefix, scope["path"]
        if prefix and path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in {"", "/"}:
            scope["path"] = path[len(prefix) :] or "/"
            raw: bytes = scope.get("raw_path") or b""
            scope["raw_path"] = raw.removeprefix(prefix.encode()) or b"/"
        forwarded = sent.get(b"x-forwarded-prefix")
        if forwarded is not None and self._is_proxy(scope):
            prefix = checked_prefix(forwarded.decode("latin-1")) or prefix
        if prefix:
            scope[PREFIX] = prefix
            if scope["path"] == OPENAPI_PATH:
                scope["root_path"] = prefix  # FastAPI names it as the document's server

    def _is_proxy(self, scope: Scope) -> bool:
        client = scope.get("client")
        try:
            peer = ip_address(client[0]) if client else None
        except ValueError:
            return False
        return peer is not None and any(peer in network for network in self._proxies)

    def _foreign(self, scope: Scope, sent: dict[bytes, bytes]) -> RequestError | None:
        """Why the gateway does not answer to this page or name; None if it does."""
        if scope["path"] in PROBES:
            return None
        host = sent.get(b"host", b"").decode("latin-1")
        if self._own_names_only and host and not self._is_own_name(host):
            return Forbidden(
                f"Host: a gateway without keys answers to localhost only, not to {host[:80]}; its operator can add "
                "names with SERINETTE_HOSTS, or ask for keys",
                field="Host",
            )
        origin = sent.get(b"origin", b"").decode("latin-1")
        if not origin or sent.get(b"sec-fetch-site") == b"same-origin" or self._settings.allows_origin(origin):
            return None
        if self._is_proxy(scope):
            host = sent.get(b"x-forwarded-host", host.encode()).decode("latin-1")
        if host and origin.lower() in {f"http://{host}".lower(), f"https://{host}".lower()}:
            return None
        gateway = "this gateway, which asks for no keys" if self._keyless else "this gateway"
        return Forbidden(
            f"Origin: pages from {origin[:80]} may not use {gateway}; its operator can allow them with "
            "SERINETTE_CORS_ORIGINS",
            field="Origin",
        )

    def _is_own_name(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        return is_loopback(name) or name.endswith(".localhost") or name in self._names


def _malformed(scope: Scope, sent: dict[bytes, bytes], twice: bytes | None) -> RequestError | None:
    if twice is not None:
        name = twice.decode("latin-1").title()
        return RequestError(f"{name}: it is sent more than once; send it once", field=name)
    host = sent.get(b"host", b"").decode("latin-1")
    if not host and scope.get("http_version") != "1.0":
        return RequestError("Host: is missing; send the name that the request is for", field="Host")
    if host and not (_PLAIN_HOST.fullmatch(host) or _is_host(host)):
        return RequestError("Host: is no name or address, with or without a port", field="Host")
    return None


def _is_host(host: str) -> bool:
    """Whether it is a name or an address with or without a port: what addresses in answers are made of, too."""
    try:
        parts = urlsplit(f"//{host}")
        return host.isascii() and parts.netloc == host and "@" not in host and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets around something else than an address, or a port that is none
        return False
