"""`/k/{key}/...`: a base URL that carries the key, for clients that send no header. Pure ASGI.

Behind this nobody sees the key: not in the path, so in no log and no answer. Redirects are made relative, so that they
stay under the client's own base without naming it.
"""

from __future__ import annotations

import posixpath
from urllib.parse import quote, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import answer
from serinette.errors import NotFound

KEY_IN_PATH = "serinette.key"
_PREFIX = "/k/"


class KeyInPath:
    """Takes the key out of the path; answers 404 where that is not `allowed`."""

    def __init__(self, app: ASGIApp, allowed: bool) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with the path that it would have had."""
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

        # In place: what is around us must not see the key afterwards either.
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
    way = posixpath.relpath(directory or "/", posixpath.dirname(path))
    # A colon in the first segment would make it a scheme.
    to = f"{way}/{name}" if way.startswith(".") else f"./{way}/{name}"
    return f"{to}?{parts.query}" if parts.query else to
