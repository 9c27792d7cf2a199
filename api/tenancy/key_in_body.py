"""`ai_token` in a small body: how clients of ACE-Step 1.5 may send their key, beside the header. Pure ASGI.

A body is read before its caller is known, so within bounds: on the paths of that dialect alone, of a request that sends
no key otherwise, of a length that is told beforehand and small, as JSON or a form without files, and not for long.
Whatever was read is handed on as it came.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.tenancy.key_in_path import KEY_IN_PATH

# The longest body in which a key is looked for; documented fields fit, audio codes may not.
MOST_BYTES = 65_536
_READ_S = 10.0
_NAMES = ("ai_token", "aiToken")


class KeyInBody:
    """Puts the key of a body where the gatekeeper looks for it."""

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, its body untouched."""
        if not self._looked_into(scope):
            return await self._app(scope, receive, send)
        messages: list[Message] = []
        with anyio.move_on_after(_READ_S):
            while not messages or messages[-1].get("more_body"):
                messages.append(await receive())
        body = b"".join(message.get("body", b"") for message in messages)
        key = key_of(_headers(scope).get(b"content-type", b"").decode("latin-1"), body)
        if key is not None:
            scope[KEY_IN_PATH] = key

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        return await self._app(scope, again, send)

    def _looked_into(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in self._paths:
            return False
        headers = _headers(scope)
        length = headers.get(b"content-length", b"")
        known = b"authorization" in headers or KEY_IN_PATH in scope
        return not known and length.isdigit() and 0 < int(length) <= MOST_BYTES


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
        return None  # whoever reads it next says what is wrong with it
    if not isinstance(fields, dict):
        return None
    found = next((fields[name] for name in _NAMES if name in fields), None)
    return found if isinstance(found, str) and found else None


def _headers(scope: Scope) -> Mapping[bytes, bytes]:
    return dict(scope["headers"])
