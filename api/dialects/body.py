"""A request's body for dialects that take several kinds: JSON, a form, a form with files, or one under a wrong name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from api.dependencies import PartsPart
from api.forms import FormRequest
from serinette.errors import RequestError, TooLarge

_MAX_FILES = 2
_MAX_FIELDS = 256
# Of a whole form they hold the two hyphens behind its last boundary, and the line breaks after.
_ENDING_BYTES = 80


@dataclass(frozen=True, slots=True)
class Body:
    """Fields by name, and files that came along, open as long as the request."""

    fields: Mapping[str, Any]
    files: Mapping[str, UploadFile] = field(default_factory=dict)


async def _body(request: Request, parts: PartsPart) -> AsyncIterator[Body]:
    most_bytes = parts.settings.max_body_bytes
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        ending = _Ending(request.receive)
        whole = FormRequest(request.scope, ending.receive, most_bytes)
        async with whole.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS) as form:
            if not ending.seen.rstrip().endswith(b"--"):  # the parser drops what was cut off, and reports nothing
                raise RequestError("the form breaks off before its last boundary; send it whole")
            files = {name: value for name, value in form.items() if isinstance(value, UploadFile)}
            yield Body({name: value for name, value in form.items() if name not in files}, files)
        return
    raw = await _read(request, most_bytes)
    if kind == "application/json" or kind.endswith("+json") or raw.lstrip()[:1] in {b"{", b"["}:
        yield Body(_from_json(raw))
    elif kind == "application/x-www-form-urlencoded" or b"=" in raw:
        yield Body(_from_form(raw))
    elif raw.strip():
        raise HTTPException(
            415,
            f"Unsupported Content-Type: {kind[:80] or '(missing)'}; use application/json, "
            "application/x-www-form-urlencoded or multipart/form-data",
        )
    else:
        yield Body({})


BodyPart = Annotated[Body, Depends(_body)]


class _Ending:
    """The last bytes of a body that the form parser reads."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.seen = b""

    async def receive(self) -> Message:
        message = await self._receive()
        self.seen = (self.seen + message.get("body", b""))[-_ENDING_BYTES:]
        return message


async def _read(request: Request, max_bytes: int) -> bytes:
    # This path's bound is that of files, which are spooled to disk; this is held in memory.
    chunks = bytearray()
    async for chunk in request.stream():
        chunks += chunk
        if len(chunks) > max_bytes:
            raise TooLarge(f"the body is longer than the {max_bytes} bytes allowed; send files as multipart/form-data")
    return bytes(chunks)


def read_json(text: str | bytes) -> Any:  # noqa: ANN401  # whatever JSON holds
    """What a body, or a text in it, holds as JSON. Raises ValueError or RecursionError: it is none that can be kept."""
    found = json.loads(text)
    json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair can be read, but neither stored nor answered
    return found


def _from_json(raw: bytes) -> dict[str, Any]:
    try:
        body = read_json(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"Invalid JSON body: {error}") from error
    if not isinstance(body, dict):
        raise RequestError("JSON payload must be an object")
    if len(body) > _MAX_FIELDS:
        raise RequestError(f"the body has {len(body)} fields; at most {_MAX_FIELDS} are allowed")
    return body


def _from_form(raw: bytes) -> dict[str, Any]:
    try:
        return dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS))
    except ValueError as error:
        raise RequestError(f"Invalid form body: {error}") from error
