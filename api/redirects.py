"""Redirects to the same path with or without its last slash, told without scheme and host. Pure ASGI.

The router takes both from the request: behind a proxy that ends TLS it would lead a client from https to http, and away
from its key.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_MOVED = 307


class HostlessRedirects:
    """Leaves of the router's own redirects the path alone (RFC 9110, 10.2.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def hostless(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == _MOVED:
                here = scope["scheme"].encode() + b"://" + dict(scope["headers"]).get(b"host", b"")
                headers = [(name, _without(here, name, value)) for name, value in message["headers"]]
                message = {**message, "headers": headers}
            await send(message)

        return await self._app(scope, receive, hostless)


def _without(here: bytes, name: bytes, value: bytes) -> bytes:
    return value.removeprefix(here) if name.lower() == b"location" and value.startswith(here + b"/") else value
