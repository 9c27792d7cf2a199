"""Which bytes of a song a request asks for (RFC 9110 §14). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SINGLE = re.compile(r"bytes\s*=\s*(\d{0,20})\s*-\s*(\d{0,20})", re.IGNORECASE | re.ASCII)


class Unsatisfiable(Exception):
    """The range lies behind the end: 416."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to `end`, exclusive."""

    start: int
    end: int


def requested_span(header: str | None, size_bytes: int) -> Span | None:
    """The one range that the header asks for; None for the whole: no header, one we cannot read, or several ranges.

    Raises:
        Unsatisfiable: no byte of the song is in the range.
    """
    match = _SINGLE.fullmatch((header or "").strip())
    if match is None or (not match[1] and not match[2]):
        return None
    if not match[1]:  # the last so many bytes
        length = min(int(match[2]), size_bytes)
        if length == 0:
            raise Unsatisfiable
        return Span(size_bytes - length, size_bytes)
    start = int(match[1])
    if match[2] and int(match[2]) < start:
        return None  # backwards is malformed, and what is malformed is ignored
    if start >= size_bytes:
        raise Unsatisfiable
    return Span(start, min(int(match[2]) + 1, size_bytes) if match[2] else size_bytes)


def names_etag(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names this ETag, weakly compared."""
    names = [name.strip().removeprefix("W/") for name in (header or "").split(",")]
    return "*" in names or etag in names
