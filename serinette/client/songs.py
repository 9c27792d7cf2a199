"""One call from a prompt to a file: generate, and generate_async."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Generic, TypeVar, Unpack

from serinette.client import wire
from serinette.client.asynchronous import AsyncClient
from serinette.client.calls import JobFields
from serinette.client.sync import Client
from serinette.errors import GenerationError, InvalidSpec, of_code
from serinette.job import Job, JobOptions, JobStatus
from serinette.spec import AudioFormat, GenerationSpec

Kind = TypeVar("Kind", Client, AsyncClient)


class _Generated(Generic[Kind]):
    """What both have."""

    def __init__(self, job: Job, client: Kind | None = None) -> None:
        self.job = job
        self._client: Kind | None = client

    def url(self, index: int = 0) -> str:
        """Where the gateway serves the song, of several the one with this index; it asks for a key there, too."""
        base = wire.address(None, None)[0] if self._client is None else self._client.url
        return f"{base}/v1/jobs/{self.job.id}/audio?index={index}"

    def _path(self, path: str | PathLike[str]) -> Path:
        """Refuses a name by which a program would take the song for something else."""
        suffix, made = Path(path).suffix.lower().removeprefix("."), self.job.spec.format
        if suffix in set(AudioFormat) - {made}:
            raise InvalidSpec(
                f"path: the song is {made}, so save it as .{made}; for .{suffix} generate with format={suffix!r}",
                field="path",
            )
        return Path(path)


class Song(_Generated[Client]):
    """A job that succeeded, to be saved; `client` fetches it, or one made of the environment."""

    def save(self, path: str | PathLike[str], index: int = 0) -> Path:
        """Write the song, of several the one with this index, to `path`, whole or not at all.

        Raises:
            InvalidSpec: `path` ends like a file of another format than the song's.
            Gone: its file was erased.
        """
        to = self._path(path)
        with _opened(self._client) as client:
            client.download(self.job, to, index)
        return to


class AsyncSong(_Generated[AsyncClient]):
    """The same, awaited."""

    async def save(self, path: str | PathLike[str], index: int = 0) -> Path:
        """As Song.save."""
        to = self._path(path)
        async with _opened_async(self._client) as client:
            await client.download(self.job, to, index)
        return to


def generate(
    song: GenerationSpec | str,
    options: JobOptions | None = None,
    *,
    client: Client | None = None,
    wait_s: float | None = None,
    **fields: Unpack[JobFields],
) -> Song:
    """Submit a song as `Client.submit` does, and wait for it: the gateway is that of `client`, else of SERINETTE_URL,
    else this machine's.

    Raises:
        InvalidSpec: a field is unknown or out of bounds.
        NotFinished: it has not ended within `wait_s`; it goes on.
        GenerationError, Canceled: the job has no song; the message says why.
    """
    with _opened(client) as asked:
        job = asked.submit(song, options, **fields)
        return Song(_succeeded(asked.wait(job.id, timeout_s=wait_s)), client)


async def generate_async(
    song: GenerationSpec | str,
    options: JobOptions | None = None,
    *,
    client: AsyncClient | None = None,
    wait_s: float | None = None,
    **fields: Unpack[JobFields],
) -> AsyncSong:
    """As `generate`, between other work."""
    async with _opened_async(client) as asked:
        job = await asked.submit(song, options, **fields)
        return AsyncSong(_succeeded(await asked.wait(job.id, timeout_s=wait_s)), client)


def _opened(client: Client | None) -> AbstractContextManager[Client]:
    return nullcontext(client) if client else Client()


def _opened_async(client: AsyncClient | None) -> AbstractAsyncContextManager[AsyncClient]:
    return nullcontext(client) if client else AsyncClient()


def _succeeded(job: Job) -> Job:
    if job.status is JobStatus.SUCCEEDED:
        return job
    if job.error is None:
        raise GenerationError(f"job {job.id} is {job.status} without saying why")
    raise of_code(job.error.code, f"job {job.id} {job.status}: {job.error.message}")
