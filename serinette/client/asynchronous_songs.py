"""One call from a prompt to a file: generate_async is written here, and generate is generated from it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from os import PathLike
from pathlib import Path
from typing import Unpack

from serinette.client import wire
from serinette.client.asynchronous import AsyncClient
from serinette.client.calls import JobFields
from serinette.client.files import check_suffix
from serinette.errors import GenerationError, of_code
from serinette.job import Job, JobOptions, JobStatus
from serinette.spec import GenerationSpec


class AsyncSong:
    """A job that succeeded, to be saved; `client` fetches it, or one made of the environment."""

    def __init__(self, job: Job, client: AsyncClient | None = None) -> None:
        self.job = job
        self._client = client

    def url(self, index: int = 0) -> str:
        """Where the gateway serves the song, of several the one with this index; it asks for a key there, too."""
        base = wire.address(None, None)[0] if self._client is None else self._client.url
        return f"{base}/v1/jobs/{self.job.id}/audio?index={index}"

    async def save(self, path: str | PathLike[str], index: int = 0) -> Path:
        """Write the song, of several the one with this index, to `path`, whole or not at all.

        Raises:
            InvalidSpec: `path` ends like a file of another format than the song's.
            Gone: its file was erased.
        """
        check_suffix(path, self.job)
        async with AsyncExitStack() as stack:
            client = self._client
            if client is None:
                client = await stack.enter_async_context(AsyncClient())
            await client.download(self.job, path, index)
        return Path(path)


async def generate_async(
    song: GenerationSpec | str,
    options: JobOptions | None = None,
    *,
    client: AsyncClient | None = None,
    wait_s: float | None = None,
    **fields: Unpack[JobFields],
) -> AsyncSong:
    """Submit a song as `AsyncClient.submit` does, and wait for it: the gateway is that of `client`, else of
    SERINETTE_URL, else this machine's.

    Raises:
        InvalidSpec: a field is unknown or out of bounds.
        NotFinished: it has not ended within `wait_s`; it goes on.
        GenerationError, Canceled: the job has no song; the message says why.
    """
    async with AsyncExitStack() as stack:
        asked = client
        if asked is None:
            asked = await stack.enter_async_context(AsyncClient())
        job = await asked.submit(song, options, **fields)
        job = await asked.wait(job.id, timeout_s=wait_s)
    if job.status is JobStatus.SUCCEEDED:
        return AsyncSong(job, client)
    if job.error is None:
        raise GenerationError(f"job {job.id} is {job.status} without saying why")
    raise of_code(job.error.code, f"job {job.id} {job.status}: {job.error.message}")
