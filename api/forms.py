"""Forms with files, of which all that is no file is bounded together: it is held in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from starlette.datastructures import FormData, Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import Receive, Scope

# Set in the scope: how long the text of this request's body may be, where that is longer than other bodies.
TEXT_BYTES = "serinette.text_bytes"


class FormRequest(Request):
    """A request whose form may hold `fields_bytes` beside its files; it is refused with 413 above."""

    def __init__(self, scope: Scope, receive: Receive, fields_bytes: int) -> None:
        super().__init__(scope, receive)
        self._fields_bytes = scope.get(TEXT_BYTES, fields_bytes)

    async def _get_form(
        self, *, max_files: float = 1000, max_fields: float = 1000, max_part_size: int = 1024 * 1024
    ) -> FormData:
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self._form is None and kind == "application/x-www-form-urlencoded":
            self._form = await FormParser(self.headers, self._bounded()).parse()
        if self._form is None and kind == "multipart/form-data":
            parser = _Parser(self.headers, self.stream(), self._fields_bytes)
            parser.max_files, parser.max_fields, parser.max_part_size = max_files, max_fields, max_part_size
            try:
                self._form = await parser.parse()
            except MultiPartException as error:
                raise HTTPException(400, error.message) from error
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


class _Parser(MultiPartParser):
    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], most_bytes: int) -> None:
        super().__init__(headers, stream)
        self._left_bytes = most_bytes
        self._most_bytes = most_bytes

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._left_bytes -= end - start
            if self._left_bytes < 0:
                raise _too_long(self._most_bytes)
        super().on_part_data(data, start, end)
