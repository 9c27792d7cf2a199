"""A bound on every request body, refused before it is read to its end. Pure ASGI: chunks are counted as they come."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import answer
from serinette.errors import RequestError, TooLarge

# What multipart wraps around a file.
_ENVELOPE_BYTES = 65_536


class BodyLimit:
    """Refuses bodies beyond the limit of their path with 413.

    `others` are the limits of paths that take files, by their prefixes; all the rest take JSON or short forms.
    """

    def __init__(self, app: ASGIApp, body_bytes: int, others: Mapping[str, int]) -> None:
        self._app = app
        self._body_bytes = body_bytes
        self._others = {prefix: limit + _ENVELOPE_BYTES for prefix, limit in others.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = scope["path"]
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), None)
        limit = self._limit_of(path)
        if declared is not None:  # the server lets no more come than that
            if not declared.isdigit() or len(declared) > 20:
                malformed = RequestError("Content-Length: not a number", field="Content-Length")
                return await answer(scope, malformed, headers={"Connection": "close"})(scope, receive, send)
            if int(declared) > limit:
                return await answer(scope, _too_large(limit))(scope, receive, send)
            return await self._app(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                # An HTTPException, because FastAPI turns every other error while reading a body into 400.
                raise HTTPException(413, _too_large(limit).message)
            return message

        return await self._app(scope, counted, send)

    def _limit_of(self, path: str) -> int:
        return next((it for prefix, it in self._others.items() if path.startswith(prefix)), self._body_bytes)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is longer than the {limit} bytes allowed here; send less")
