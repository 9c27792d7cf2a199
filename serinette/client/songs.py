"""What waits: generated from asynchronous_songs.py by `make client`, so change that one."""

from __future__ import annotations

from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Unpack

from serinette.client import wire
from serinette.client.calls import JobFields
from serinette.client.files import check_suffix
from serinette.client.sync import Client
from serinette.errors import GenerationError, of_code
from serinette.job import Job, JobOptions, JobStatus
from serinette.spec import GenerationSpec


class Song:
    """A job that succeeded, to be saved; `client` fetches it, or one made of the environment."""

    def __init__(self, job: Job, client: Client | None = None) -> None:
        self.job = job
        self._client = client

    def url(self, index: int = 0) -> str:
        """Where the gateway serves the song, of several the one with this index; it asks for a key there, too."""
        base = wire.address(None, None)[0] if self._client is None else self._client.url
        return f"{base}/v1/jobs/{self.job.id}/audio?index={index}"

    def save(self, path: str | PathLike[str], index: int = 0) -> Path:
        """Write the song, of several the one with this index, to `path`, whole or not at all.

        Raises:
            InvalidSpec: `path` ends like a file of another format than the song's.
            Gone: its file was erased.
        """
        check_suffix(path, self.job)
        with ExitStack() as stack:
            client = self._client
            if client is None:
                client = stack.enter_context(Client())
            client.download(self.job, path, index)
        return Path(path)


def generate(
    song: GenerationSpec | str,
    options: JobOptions | None = None,
    *,
    client: Client | None = None,
    wait_s: float | None = None,
    **fields: Unpack[JobFields],
) -> Song:
    """Submit a song as `AsyncClient.submit` does, and wait for it: the gateway is that of `client`, else of
    SERINETTE_URL, else this machine's.

    Raises:
        InvalidSpec: a field is unknown or out of bounds.
        NotFinished: it has not ended within `wait_s`; it goes on.
        GenerationError, Canceled: the job has no song; the message says why.
    """
    with ExitStack() as stack:
        asked = client
        if asked is None:
            asked = stack.enter_context(Client())
        job = asked.submit(song, options, **fields)
        job = asked.wait(job.id, timeout_s=wait_s)
    if job.status is JobStatus.SUCCEEDED:
        return Song(job, client)
    if job.error is None:
        raise GenerationError(f"job {job.id} is {job.status} without saying why")
    raise of_code(job.error.code, f"job {job.id} {job.status}: {job.error.message}")
