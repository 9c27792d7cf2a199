"""Containers: AsyncContainers, whose methods are those of Containers too, and how a log is read as it grows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack
from urllib.parse import quote

from serinette.client.calls import Call, JobOptionFields, job_path, nothing, ordered, uploaded
from serinette.client.network import created
from serinette.client.wire import LOG_EVENTS
from serinette.container import ContainerSpec, Input, Output, is_file_name
from serinette.errors import SerinetteError
from serinette.job import Job, JobOptions, UploadedFile

if TYPE_CHECKING:
    from serinette.client.asynchronous import AsyncClient


class ContainerFields(JobOptionFields, total=False):
    """Fields of a container and its job; see ContainerSpec and JobOptions for meaning and bounds."""

    args: Sequence[str]
    env: Mapping[str, str]
    secrets: Mapping[str, str]
    gpus: int
    cpu: float
    memory_mib: int
    disk_mib: int
    retries: int
    pool: str | None
    inputs: Sequence[Input | Mapping[str, str]]
    writable_root: bool


class AsyncContainers:
    """`client.containers`: containers of the user's own; see docs/containers.md."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def submit(
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
        given = {"image": container} if isinstance(container, str) else container.model_dump(exclude_unset=True)
        given |= {"command": command} if command else {}
        call = ordered("/v1/containers", ContainerSpec, given | fields, options, idempotency_key)
        return await self._client.perform(call)

    async def upload(self, file: str | PathLike[str] | bytes) -> UploadedFile:
        """Bring a file (or its bytes), whatever it is; its `id` is the `upload` of one of a container's `inputs`.

        Raises:
            Unsupported: this deployment runs no containers.
            TooLarge: it is not kept.
        """
        body = file if isinstance(file, bytes) else Path(file)
        return await self._client.perform(uploaded("/v1/files", UploadedFile, body), body=body)

    async def log(self, job_id: str) -> str:
        """The log: as far as it is while the container runs, whole when it has ended.

        Raises:
            NotFound: there is no such job, or it is a song.
        """
        return await self._client.perform(Call("GET", f"{job_path(job_id)}/log", _text, hold_s=30))

    async def follow(self, job_id: str) -> AsyncIterator[str]:
        """The lines of the log from its beginning, as they come, until the job has ended. Each attempt has its own.

        Raises:
            NotFound: there is no such job, or it is a song.
        """
        log = GrowingLog(job_id)
        async for event in self._client.events(job_id):
            lines = log.part(event.data) if event.type == "log" else None
            if lines is None and event.type in LOG_EVENTS:
                lines = await self._client.perform(log.whole())
            for line in lines or ():
                yield line
        for line in log.rest():
            yield line

    async def download(self, job: Job | str, directory: str | PathLike[str]) -> tuple[Path, ...]:
        """Write all outputs (the job's `run.outputs`; none until it has ended) below a directory, each whole and with
        its SHA-256 compared; their paths.

        Raises:
            Gone: they were erased.
            SerinetteError: one has a name that leads elsewhere.
        """
        job = job if isinstance(job, Job) else await self._client.get(job)
        files = [(output, place_of(Path(directory), output)) for output in (job.run.outputs if job.run else ())]
        created(directory)
        for output, path in files:
            created(path.parent)
            call = Call("GET", f"{job_path(job.id)}/outputs/{quote(output.name)}", nothing, hold_s=30)
            await self._client.fetch(call, path, output.sha256 or None)
        return tuple(path for _, path in files)


def place_of(directory: Path, output: Output) -> Path:
    """Where an output goes.

    Raises:
        SerinetteError: its name leads elsewhere, whatever the server says.
    """
    if not is_file_name(output.name):
        raise SerinetteError(f"the server names an output {ascii(output.name)[:200]}, which is not written: it is none")
    return directory / output.name


class GrowingLog:
    """The lines of a log as it grows: by its events, and by the whole of it where an event was missed. Each attempt has
    a log of its own. Not for use from two threads.
    """

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._attempt, self._read_bytes = 0, 0  # how far it was read
        self._etag = ""  # of the whole: {number of the attempt}-{bytes}
        self._rest = b""  # of a line that was not whole

    def part(self, data: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The new lines of a `log` event; None if it does not follow what was read: something before it was missed."""
        attempt, start_bytes = data.get("attempt", -1), data.get("start_bytes", 0)
        read_bytes = self._read_bytes if attempt == self._attempt else 0
        if attempt < self._attempt or start_bytes > read_bytes:
            return None
        return self._add(attempt, start_bytes, data["text"].encode())

    def whole(self) -> Call[tuple[str, ...]]:
        """GET /v1/jobs/{id}/log, and of it the new lines."""
        return Call("GET", f"{job_path(self._job_id)}/log", self._read, on_headers=self._on_headers, hold_s=30)

    def rest(self) -> tuple[str, ...]:
        """What is left when the job has ended: a last line without an end."""
        rest, self._rest = self._rest, b""
        return (_text(rest),) if rest else ()

    def _on_headers(self, headers: Mapping[str, str]) -> None:
        self._etag = headers.get("ETag", "").removeprefix("W/").strip('"')  # weak behind a proxy that compresses

    def _read(self, raw: bytes) -> tuple[str, ...]:
        return self._add(int(self._etag.partition("-")[0]), 0, raw)

    def _add(self, attempt: int, start_bytes: int, data: bytes) -> tuple[str, ...]:
        before: tuple[str, ...] = ()
        if attempt != self._attempt:
            before, self._attempt, self._read_bytes = self.rest(), attempt, 0
        fresh = data[max(self._read_bytes - start_bytes, 0) :]
        self._read_bytes = max(self._read_bytes, start_bytes + len(data))
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        return (*before, *map(_text, lines))


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
