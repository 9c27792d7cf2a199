"""Downloads of songs, container outputs and logs, whole or by range (RFC 9110 §14), for every dialect."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Scope

from api.problems import answer
from api.turns import HeldResponse, Threads, Turns
from serinette.errors import Gone, Limited, NotFinished, NotFound, RequestError
from serinette.job import Artifact, Job, JobStatus
from serinette.names import tenant_of
from serinette.store import Store

# Of what others made: nothing of it runs, whatever a browser takes it for.
SANDBOX = "sandbox; default-src 'none'"
# Files that are sent at once, of one tenant and of all: each holds some chunks in memory for as long as its client
# takes to read, and a range of a zip reads all songs before it.
DOWNLOADS_OF_TENANT = 64
_DOWNLOADS = 256
_MANY_DOWNLOADS = partial(
    Limited,
    f"downloads: {DOWNLOADS_OF_TENANT} of one tenant are sent at once, and as many wait; wait for some to end",
    retry_after_s=5,
)
_SINGLE = re.compile(r"bytes\s*=\s*(\d{0,20})\s*-\s*(\d{0,20})", re.IGNORECASE | re.ASCII)


class Unsatisfiable(Exception):
    """The range begins after the end of the file: 416."""


def requested_range(header: str | None, size_bytes: int) -> range | None:
    """The bytes that the header requests; None for the whole file: no header, a malformed one, or several ranges.

    Raises:
        Unsatisfiable: no byte of the file is in the range.
    """
    match = _SINGLE.fullmatch((header or "").strip())
    if match is None or (not match[1] and not match[2]):
        return None
    if not match[1]:  # a suffix range
        length = min(int(match[2]), size_bytes)
        if length == 0:
            raise Unsatisfiable
        return range(size_bytes - length, size_bytes)
    start = int(match[1])
    if match[2] and int(match[2]) < start:
        return None  # end before start is malformed, and a malformed header is ignored
    if start >= size_bytes:
        raise Unsatisfiable
    return range(start, min(int(match[2]) + 1, size_bytes) if match[2] else size_bytes)


def names_etag(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names this ETag, weakly compared."""
    names = [name.strip().removeprefix("W/") for name in (header or "").split(",")]
    return "*" in names or etag in names


@dataclass(frozen=True, slots=True)
class OtherFile:
    """A file in the store that is no song. `etag` changes with the bytes."""

    key: str
    size_bytes: int
    etag: str
    content_type: str


StoredFile: TypeAlias = Artifact | OtherFile


@dataclass(frozen=True, slots=True)
class FileRequest:
    """The range and the conditions of a request for a file."""

    scope: Scope
    range: str | None = None
    if_range: str | None = None
    if_none_match: str | None = None

    @classmethod
    def of(cls, request: Request) -> FileRequest:
        """Read from the request's headers."""
        get = request.headers.get
        return cls(request.scope, get("range"), get("if-range"), get("if-none-match"))

    def is_cached(self, song: StoredFile) -> bool:
        """Whether the client has the file already."""
        return names_etag(self.if_none_match, _etag(song))


def song_of(job: Job, index: int) -> Artifact:
    """One song of a job.

    Raises:
        NotFinished: it is not generated yet.
        Gone: the job ended without songs.
        NotFound: it has fewer songs.
    """
    if not job.status.ended:
        raise NotFinished(f"job {job.id} is {job.status}: its song is not ready; follow /v1/jobs/{job.id}/events")
    if job.container is not None:
        raise NotFound(f"job {job.id} is a container and has no song: see /v1/jobs/{job.id}/outputs/{{name}}")
    if job.status is not JobStatus.SUCCEEDED or job.result is None:
        reason = f": {job.error.message}" if job.error else ""
        raise Gone(f"job {job.id} {'was' if job.status is JobStatus.CANCELED else 'has'} {job.status}{reason}")
    for artifact in job.result.artifacts:
        if artifact.index == index:
            return artifact
    if job.result.texts:
        raise NotFound(f"job {job.id} is of task {job.spec.task} and has no song: what was written is in result.texts")
    count = len(job.result.artifacts)
    has = "1 song, index 0" if count == 1 else f"{count} songs, index 0 to {count - 1}"
    raise NotFound(f"index: job {job.id} has {has}", field="index")


@dataclass(frozen=True, slots=True)
class Downloads:
    """Serves files of the store; blocking calls run in `threads`. `sending`: those that are on their way."""

    store: Store
    threads: Threads
    sending: Turns = field(default_factory=lambda: Turns(_DOWNLOADS, DOWNLOADS_OF_TENANT, _MANY_DOWNLOADS))

    async def redirect_or_serve(
        self, song: StoredFile, file_request: FileRequest, file_name: str, presign_s: int, *, download: bool
    ) -> Response:
        """A redirect to the file's presigned URL, where the store gives one and the client may follow it; else `serve`.

        Raises:
            Gone: its file was erased.
        """
        if file_request.scope["method"] == "GET" and not file_request.is_cached(song):
            # May fetch the store's credentials first.
            url = await self.threads.run(tenant_of(song.key), partial(self.store.sign_get, song.key, presign_s))
            if url is not None:
                return RedirectResponse(url, 307, {"Cache-Control": "no-store"})
        return await self.serve(song, file_request, file_name, download=download)

    async def serve(
        self,
        song: StoredFile,
        file_request: FileRequest,
        file_name: str,
        *,
        download: bool,
        made: Callable[[int, int], AsyncIterator[bytes]] | None = None,
    ) -> Response:
        """The file or the requested range of it, 304 or 416. `made` returns the bytes between two offsets of a file
        that is made of others while it is sent; `song.key` is then the object without which there is none.

        Raises:
            Gone: its file was erased.
        """
        is_audio = song.content_type.startswith("audio/")
        headers = _headers(song, file_name, "inline" if is_audio and not download else "attachment")
        if file_request.is_cached(song):
            return Response(status_code=304, headers=headers)
        try:
            unchanged = file_request.if_range in (None, headers["ETag"])
            part = requested_range(file_request.range, song.size_bytes) if unchanged else None
        except Unsatisfiable:
            error = RequestError(f"Range: the file has {song.size_bytes} bytes", field="Range")
            return answer(file_request.scope, error, 416, {"Content-Range": f"bytes */{song.size_bytes}"})
        try:
            return await self._bytes(file_request.scope["method"], song, part, headers, made)
        except NotFound as error:
            raise Gone("the song's file was erased from the store") from error

    async def in_base64(self, parts: Sequence[bytes | StoredFile], media_type: str) -> Response:
        """A text with files in it in base64, never more than a chunk of it in memory.

        Raises:
            Gone: a file was erased.
        """
        for part in parts:
            if not isinstance(part, bytes):
                try:
                    await self.threads.run(tenant_of(part.key), partial(self.store.head, part.key))
                except NotFound as error:
                    raise Gone("the song's file was erased from the store") from error
        whole = StreamingResponse(self.texts(parts), headers={"Content-Type": media_type})
        tenants = [tenant_of(part.key) for part in parts if not isinstance(part, bytes)]
        return HeldResponse(whole, self.sending.of(tenants[0])) if tenants else whole

    async def texts(self, parts: Sequence[bytes | StoredFile]) -> AsyncIterator[bytes]:
        """The pieces of such a text."""
        for part in parts:
            if isinstance(part, bytes):
                yield part
                continue
            left = b""
            async for chunk in self.store.stream(part.key):
                data = left + chunk
                whole = len(data) - len(data) % 3  # only at the end may base64 be padded
                left = data[whole:]
                yield base64.b64encode(data[:whole])
            yield base64.b64encode(left)

    async def _bytes(
        self,
        method: str,
        song: StoredFile,
        part: range | None,
        headers: dict[str, str],
        made: Callable[[int, int], AsyncIterator[bytes]] | None,
    ) -> Response:
        status, start, end = (206, part.start, part.stop) if part else (200, 0, song.size_bytes)
        if part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{song.size_bytes}"
        headers["Content-Length"] = str(end - start)
        if method == "HEAD" or start == end:  # no store reads nothing of an empty file
            await self.threads.run(tenant_of(song.key), partial(self.store.head, song.key))
            return Response(status_code=status, headers=headers)
        async with AsyncExitStack() as turn:
            await turn.enter_async_context(self.sending.of(tenant_of(song.key)))
            chunks = (made or partial(self.store.stream, song.key))(start, end)
            first = await anext(chunks, b"")  # a missing file must be noticed before the status is sent
            return HeldResponse(StreamingResponse(_with_first(first, chunks), status, headers), turn.pop_all())


def _etag(song: StoredFile) -> str:
    return f'"{song.etag}"'


def _headers(song: StoredFile, file_name: str, disposition: str) -> dict[str, str]:
    return {
        "ETag": _etag(song),
        "Accept-Ranges": "bytes",
        "Content-Type": song.content_type,
        "Content-Disposition": f'{disposition}; filename="{file_name}"',
        # The file never changes but can be erased, so a cache must revalidate, which answers 304.
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": SANDBOX,
    }


async def _with_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
