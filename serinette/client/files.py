"""Songs on their way into files, and files on their way to the gateway."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import anyio

from serinette.client.wire import CHUNK_BYTES
from serinette.errors import InvalidSpec, SerinetteError
from serinette.job import Job
from serinette.spec import AudioFormat


def check_suffix(path: str | PathLike[str], job: Job) -> None:
    """Refuse a name by which a program would take the job's songs for something else.

    Raises:
        InvalidSpec: it ends like a file of another format.
    """
    suffix, made = Path(path).suffix.lower().removeprefix("."), job.spec.format
    if suffix in set(AudioFormat) - {made}:
        raise InvalidSpec(
            f"path: the song is {made}, so save it as .{made}; for .{suffix} generate with format={suffix!r}",
            field="path",
        )


class Incoming:
    """A song that is being written: beside its place until it is whole."""

    def __init__(self, path: Path, sha256: str | None) -> None:
        self._path = path
        self._sha256 = sha256
        self._digest = hashlib.sha256()
        self.partial = path.with_name(f".{path.name}.partial")

    def update(self, chunk: bytes) -> None:
        """Add bytes that were written to the digest."""
        self._digest.update(chunk)

    def finish(self) -> int:
        """Put it into its place; its size in bytes.

        Raises:
            SerinetteError: it is not what was generated.
        """
        if self._sha256 is not None and self._digest.hexdigest() != self._sha256:
            raise SerinetteError(f"{self._path} arrived damaged: its SHA-256 is not that of the song; fetch it again")
        self.partial.replace(self._path)  # a song cut short is no song
        return self._path.stat().st_size


@contextmanager
def incoming(path: Path, sha256: str | None) -> Iterator[Incoming]:
    """Where a file goes; nothing is left if it does not arrive. What is known of it is checked."""
    file = Incoming(path, sha256)
    try:
        yield file
    finally:
        file.partial.unlink(missing_ok=True)


def created(path: Path) -> BinaryIO:
    """A new file, open for writing."""
    return path.open("wb")


async def async_created(path: Path) -> anyio.AsyncFile[bytes]:
    """The same without blocking the event loop."""
    return await anyio.open_file(path, "wb")


def size_of(audio: Path | bytes) -> int:
    """Bytes of an upload."""
    return len(audio) if isinstance(audio, bytes) else audio.stat().st_size


def chunks(audio: Path | bytes) -> Iterator[bytes]:
    """The bytes of an upload, from the start each time."""
    if isinstance(audio, bytes):
        yield audio
        return
    with audio.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


async def async_chunks(audio: Path | bytes) -> AsyncIterator[bytes]:
    """The same without blocking the event loop."""
    if isinstance(audio, bytes):
        yield audio
        return
    async with await anyio.open_file(audio, "rb") as file:
        while chunk := await file.read(CHUNK_BYTES):
            yield chunk


def made(directory: str | PathLike[str]) -> Path:
    """A directory that is there now."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    return path


def sha256_of(job: Job | str, index: int) -> str | None:
    """The checksum of one song, if it is known."""
    known = job.result.artifacts if isinstance(job, Job) and job.result else ()
    return next((song.sha256 for song in known if song.index == index), None)


def id_of(job: Job | str) -> str:
    """The id of a job, given either way."""
    return job.id if isinstance(job, Job) else job
