"""`client.containers`: an image and a command run as a job, its log followed, what it left fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from serinette.client import container_calls as calls
from serinette.client import wire
from serinette.client.container_calls import ContainerFields, LogReader, outputs_of, place_of
from serinette.client.files import chunks, made, size_of
from serinette.container import ContainerSpec, Output
from serinette.job import Job, JobOptions, UploadedFile

if TYPE_CHECKING:
    from serinette.client.sync import Client


class Containers:
    """Containers of one gateway. What holds for all jobs (`get`, `wait`, `cancel`, `events`) is the client's own."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def submit(
        self,
        container: ContainerSpec | str,
        command: Sequence[str] = (),
        options: JobOptions | None = None,
        *,
        idempotency_key: str | None = None,
        **fields: Unpack[ContainerFields],
    ) -> Job:
        """Queue a container: a spec, or its image and further fields, as in `submit(image, ["train"], gpus=1)`.

        Raises:
            Unsupported: this deployment runs none.
            InvalidSpec: a field is unknown, out of bounds, or more than the operator allows.
            IdempotencyConflict: the key was used with another container.
            Limited: a bound is reached, and was for as long as `retry` says.
        """
        return self._client.perform(calls.submit(container, command, options, idempotency_key, fields))

    def upload(self, file: str | PathLike[str] | bytes) -> UploadedFile:
        """Bring a file (or its bytes), whatever it is; its `id` is the `upload` of one of a container's `inputs`.

        Raises:
            Unsupported: this deployment runs no containers.
            TooLarge: it is not kept.
        """
        body = file if isinstance(file, bytes) else Path(file)
        return self._client.perform(calls.upload(size_of(body)), content=lambda: chunks(body))

    def log(self, job_id: str) -> str:
        """The log: as far as it is while the container runs, whole when it has ended.

        Raises:
            NotFound: there is no such job, or it is a song.
        """
        return self._client.perform(calls.log(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """The lines of the log from its beginning, as they come, until the job has ended. Each attempt has its own.

        Raises:
            NotFound: there is no such job, or it is a song.
        """
        reader = LogReader(job_id)
        for event in self._client.events(job_id):
            if event.type in wire.TELLS_OF_LOG:
                yield from self._client.perform(reader.call())
        yield from reader.rest()

    def outputs(self, job: Job | str) -> tuple[Output, ...]:
        """What it left below /outputs; nothing until it has ended."""
        return outputs_of(job if isinstance(job, Job) else self._client.get(job))

    def download(self, job: Job | str, directory: str | PathLike[str]) -> tuple[Path, ...]:
        """Write all outputs below a directory, each whole and with its SHA-256 compared; their paths.

        Raises:
            Gone: they were erased.
            SerinetteError: one has a name that leads elsewhere.
        """
        job = job if isinstance(job, Job) else self._client.get(job)
        place = made(directory)
        files = [(output, place_of(place, output)) for output in outputs_of(job)]
        for output, path in files:
            self._client.fetch(calls.output(job.id, output.name), path, output.sha256 or None)
        return tuple(path for _, path in files)
