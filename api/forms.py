"""Forms with files, of which all that is no file is bounded together: it is held in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from starlette.datastructures import FormData, Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import Receive, Scope

# Set in the scope: how long the text of this request's body may be, where that is longer than other bodies.
TEXT_BYTES = "serinette.text_bytes"
_PIECE_BYTES: Final = 65_536
# No form here has more; and of each so much is held in memory, the rest on the disk.
_MOST_FILES: Final = 2
_FILE_BYTES_IN_MEMORY: Final = 65_536


class FormRequest(Request):
    """A request whose form may hold `fields_bytes` beside its files; it is refused with 413 above."""

    def __init__(self, scope: Scope, receive: Receive, fields_bytes: int) -> None:
        super().__init__(scope, receive)
        self._fields_bytes = scope.get(TEXT_BYTES, fields_bytes)

    async def _get_form(
        self, *, max_files: float = 1000, max_fields: float = 1000, max_part_size: int = 1024 * 1024
    ) -> FormData:
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        parser: FormParser | MultiPartParser | None = None
        # One field may be as long as all together, which is what is bounded.
        bounds: Any = {"max_fields": max_fields, "max_part_size": self._fields_bytes}
        if kind == "application/x-www-form-urlencoded":
            parser = _FieldParser(self.headers, self._bounded(), **bounds)
        elif kind == "multipart/form-data":
            most_files = min(max_files, _MOST_FILES)
            parser = _Parser(self.headers, self.stream(), self._fields_bytes, max_files=most_files, **bounds)
        if self._form is None and parser is not None:
            try:
                self._form = await parser.parse()
            except MultiPartException as error:
                raise HTTPException(400, error.message) from error
        if parser is None:
            async for chunk in self.stream():
                if chunk:  # else a form of defaults would be read
                    raise HTTPException(
                        415, "send the fields as a form: application/x-www-form-urlencoded or multipart"
                    )
        return await super()._get_form(max_files=max_files, max_fields=max_fields, max_part_size=max_part_size)

    async def _bounded(self) -> AsyncGenerator[bytes, None]:
        size_bytes = 0
        async for chunk in self.stream():
            size_bytes += len(chunk)
            if size_bytes > self._fields_bytes:
                raise _too_long(self._fields_bytes)
            yield chunk


def _too_long(most_bytes: int) -> HTTPException:
    # HTTPException, because FastAPI turns every other error while reading a body into 400.
    return HTTPException(413, f"the form's fields are longer than {most_bytes} bytes together")


class _FieldParser(FormParser):
    def on_field_end(self) -> None:
        quoted, self._field_value = self._field_value, bytearray()
        super().on_field_end()
        self._items[-1] = (self._items[-1][0], _unquoted(quoted))


def _unquoted(quoted: bytearray) -> str:
    """Piece by piece: of 8 MiB of `%41` at once, urllib makes 600 MiB of small objects."""
    parts, start = [], 0
    while start < len(quoted):
        end = start + _PIECE_BYTES
        escape = quoted.find(b"%", end - 2, end)  # one that the piece would cut
        end = escape if escape > 0 and end < len(quoted) else end
        parts.append(unquote_to_bytes(bytes(quoted[start:end].replace(b"+", b" "))))
        start = end
    return b"".join(parts).decode(errors="replace")


class _Parser(MultiPartParser):
    spool_max_size = _FILE_BYTES_IN_MEMORY

    def __init__(
        self,
        headers: Headers,
        stream: AsyncGenerator[bytes, None],
        most_bytes: int,
        **bounds: Any,  # noqa: ANN401  # its parser's own
    ) -> None:
        super().__init__(headers, stream, **bounds)
        self._left_bytes = most_bytes
        self._most_bytes = most_bytes

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._left_bytes -= end - start
            if self._left_bytes < 0:
                raise _too_long(self._most_bytes)
        super().on_part_data(data, start, end)
