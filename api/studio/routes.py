"""The studio's files, from memory: `/` is its page, `studio/{name}` what the page loads."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.responses import Response

from api.downloads import names_etag
from api.response_headers import accepts_gzip
from serinette.errors import NotFound

router = APIRouter(include_in_schema=False)

PAGE = "index.html"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Songs are fetched through the gateway (`download=true`), so that no store's address has to be allowed here.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; media-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class _File:
    plain: bytes
    compressed: bytes
    headers: dict[str, str]


@cache
def _files() -> dict[str, _File]:
    """Each file by name; a name that is not in here is on no disk either."""
    found = {}
    for file in files("api.studio").iterdir():
        kind = next((kind for suffix, kind in _KINDS.items() if file.name.endswith(suffix)), None)
        if kind is not None:
            plain = file.read_bytes()
            headers = {
                "Content-Type": f"{kind}; charset=utf-8",
                "ETag": f'W/"{hashlib.sha256(plain).hexdigest()[:32]}"',  # weak: the same for both encodings
                "Cache-Control": "no-cache",
                "Vary": "Accept-Encoding",
                "Referrer-Policy": "no-referrer",
                "Content-Security-Policy": _POLICY,
            }
            found[file.name] = _File(plain, gzip.compress(plain, 9, mtime=0), headers)
    return found


@router.get("/")
@router.get("/studio/{name}")
async def serve(
    name: str = PAGE,
    if_none_match: Annotated[str | None, Header()] = None,
    accept_encoding: Annotated[str, Header()] = "",
) -> Response:
    """One file, compressed for clients that take it."""
    file = _files().get(name)
    if file is None:
        raise NotFound(f"the studio has no file {name[:80]}; its page is at /")
    if names_etag(if_none_match, file.headers["ETag"].removeprefix("W/")):
        return Response(status_code=304, headers=file.headers)
    if accepts_gzip(accept_encoding):
        return Response(file.compressed, headers={**file.headers, "Content-Encoding": "gzip"})
    return Response(file.plain, headers=file.headers)
