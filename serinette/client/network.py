"""What the two clients do in two ways: send, read, pause, write files. All else is written once, with coroutines.

Those of `Blocking` never suspend, so that `completed` runs them, and whatever awaits nothing else, without an event
loop: a Client has no thread and no loop of its own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import anyio
import httpx
from anyio import to_thread

from serinette.errors import SerinetteError

T = TypeVar("T")

CHUNK_BYTES = 65_536


class Awaiting:
    """For the event loop, which neither the network nor the disk blocks."""

    def __init__(self, arguments: Mapping[str, Any], transport: Any) -> None:  # noqa: ANN401  # httpx's, of either kind
        self.http = httpx.AsyncClient(**arguments, transport=transport)

    async def send(self, request: httpx.Request, *, follow_redirects: bool) -> httpx.Response:
        """The answer, its body unread."""
        return await self.http.send(request, stream=True, follow_redirects=follow_redirects)

    async def read(self, response: httpx.Response) -> bytes:
        """The whole body."""
        return await response.aread()

    def lines(self, response: httpx.Response) -> AsyncIterator[str]:
        """The body, line by line."""
        return response.aiter_lines()

    def pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body, piece by piece."""
        return response.aiter_bytes(CHUNK_BYTES)

    async def end(self, response: httpx.Response) -> None:
        """Let go of an answer."""
        await response.aclose()

    async def content(self, body: Path | bytes) -> AsyncIterator[bytes]:
        """The bytes of an upload, from the start each time."""
        pieces = chunks(body)
        while piece := await to_thread.run_sync(next, pieces, b""):
            yield piece

    async def run(self, function: Callable[[bytes], None], piece: bytes) -> None:
        """Call what may wait for the disk."""
        await to_thread.run_sync(function, piece)

    async def sleep(self, pause_s: float) -> None:
        """Wait."""
        await anyio.sleep(pause_s)

    async def close(self) -> None:
        """Close the connections."""
        await self.http.aclose()


class Blocking:
    """The same without an event loop: nothing suspends."""

    def __init__(self, arguments: Mapping[str, Any], transport: Any) -> None:  # noqa: ANN401  # httpx's, of either kind
        self.http = httpx.Client(**arguments, transport=transport)

    async def send(self, request: httpx.Request, *, follow_redirects: bool) -> httpx.Response:
        """The answer, its body unread."""
        return self.http.send(request, stream=True, follow_redirects=follow_redirects)

    async def read(self, response: httpx.Response) -> bytes:
        """The whole body."""
        return response.read()

    async def lines(self, response: httpx.Response) -> AsyncIterator[str]:
        """The body, line by line."""
        for line in response.iter_lines():
            yield line

    async def pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """The body, piece by piece."""
        for piece in response.iter_bytes(CHUNK_BYTES):
            yield piece

    async def end(self, response: httpx.Response) -> None:
        """Let go of an answer."""
        response.close()

    def content(self, body: Path | bytes) -> Iterator[bytes]:
        """The bytes of an upload, from the start each time."""
        return chunks(body)

    async def run(self, function: Callable[[bytes], None], piece: bytes) -> None:
        """Call what may wait for the disk."""
        function(piece)

    async def sleep(self, pause_s: float) -> None:
        """Wait."""
        time.sleep(pause_s)  # noqa: ASYNC251  # as this class does

    async def close(self) -> None:
        """Close the connections."""
        self.http.close()


def completed(awaitable: Awaitable[T]) -> T:
    """What is returned by a coroutine that never suspends."""
    try:
        next(awaitable.__await__())
    except StopIteration as done:
        result: T = done.value
        return result
    raise RuntimeError("a client that waits was given something to await: use AsyncClient")


def chunks(body: Path | bytes) -> Iterator[bytes]:
    """The bytes of an upload."""
    if isinstance(body, bytes):
        yield body
        return
    with body.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


class Incoming:
    """A file that is being written: beside its place until it is whole."""

    def __init__(self, path: Path, partial: Path, file: BinaryIO) -> None:
        self._path = path
        self._partial = partial
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Write the next bytes."""
        self._file.write(piece)
        self._digest.update(piece)

    def finish(self, sha256: str | None) -> int:
        """Put it into its place; its size in bytes.

        Raises:
            SerinetteError: it is not what was generated.
        """
        if sha256 is not None and self._digest.hexdigest() != sha256:
            raise SerinetteError(f"{self._path} arrived damaged: its SHA-256 is not that of the song; fetch it again")
        self._file.close()
        size_bytes = self._partial.stat().st_size
        if is_special(self._path):
            with self._partial.open("rb") as whole, self._path.open("wb") as special:
                shutil.copyfileobj(whole, special)
        else:
            self._partial.replace(self._path)  # a song cut short is no song
        return size_bytes


@contextmanager
def incoming(path: Path) -> Iterator[Incoming]:
    """Where a file goes; nothing is left if it does not arrive."""
    partial = path.with_name(f".{path.name}.partial")
    if is_special(path):
        handle, name = tempfile.mkstemp(prefix="serinette-")
        os.close(handle)
        partial = Path(name)
    try:
        with partial.open("wb") as file:
            yield Incoming(path, partial, file)
    finally:
        partial.unlink(missing_ok=True)


def is_special(path: Path) -> bool:
    """Whether there is something that is neither a file nor a directory, and whose place no file may take: /dev/null,
    a named pipe.
    """
    return path.exists() and not path.is_file() and not path.is_dir()


def created(directory: str | PathLike[str]) -> Path:
    """A directory that is there now."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    return path
