"""What the methods on containers ask of the gateway, and how a log is read as it grows. Pure, as calls.py is."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from pydantic import ValidationError

from serinette.client.calls import Call, job_path, model, nothing, options_of
from serinette.container import ContainerSpec, Input, Output, is_file_name
from serinette.errors import SerinetteError
from serinette.job import Job, JobOptions, UploadedFile
from serinette.names import Lane
from serinette.spec import invalid_spec


class ContainerFields(TypedDict, total=False):
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
    lane: Lane | Literal["high", "normal", "low"]
    timeout_s: int | None
    labels: Mapping[str, str]
    start_deadline_s: int | None
    webhook: str | None


def submit(
    container: ContainerSpec | str,
    command: Sequence[str],
    options: JobOptions | None,
    idempotency_key: str | None,
    fields: ContainerFields,
) -> Call[Job]:
    """POST /v1/containers, with what was said and no more.

    Raises:
        InvalidSpec: a field is unknown or out of bounds.
    """
    given: dict[str, Any] = dict(fields)
    try:
        chosen = options_of(options, given)
        said = {"image": container} if isinstance(container, str) else container.model_dump(exclude_unset=True)
        spec = ContainerSpec.model_validate({**said, **({"command": command} if command else {}), **given})
    except ValidationError as error:
        raise invalid_spec(error) from error
    body = spec.model_dump(mode="json", exclude_unset=True) | chosen.model_dump(mode="json", exclude_unset=True)
    # A key of its own: an answer that was lost on the way makes no second container.
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call("POST", "/v1/containers", model(Job), body=body, headers=headers)


def upload(size_bytes: int) -> Call[UploadedFile]:
    """POST /v1/files."""
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
    return Call("POST", "/v1/files", model(UploadedFile), headers=headers, hold_s=60)


def log(job_id: str) -> Call[str]:
    """GET /v1/jobs/{id}/log, all of it."""
    return Call("GET", f"{job_path(job_id)}/log", _text, hold_s=30)


def output(job_id: str, name: str) -> Call[None]:
    """GET /v1/jobs/{id}/outputs/{name}."""
    return Call("GET", f"{job_path(job_id)}/outputs/{quote(name)}", nothing, hold_s=30)


def outputs_of(job: Job) -> tuple[Output, ...]:
    """What an ended container left below /outputs."""
    return job.run.outputs if job.run else ()


def place_of(directory: Path, output: Output) -> Path:
    """Where an output goes, its directory made.

    Raises:
        SerinetteError: its name leads elsewhere, whatever the server says.
    """
    if not is_file_name(output.name):
        raise SerinetteError(f"the server names an output {ascii(output.name)[:200]}, which is not written: it is none")
    path = directory / output.name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class LogReader:
    """Reads a log piece by piece: `call` asks for the lines that were not seen yet. Not for use from two threads."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._place = ""  # ETag of the last answer: {number of the attempt}-{bytes}
        self._etag = ""
        self._rest = b""  # of a line that was not whole

    def call(self) -> Call[tuple[str, ...]]:
        """GET /v1/jobs/{id}/log behind the last answer. An attempt has a log of its own, which is read from its
        start.
        """
        query = {"after": self._place} if self._place else {}
        return Call(
            "GET", f"{job_path(self._job_id)}/log", self._read, query=query, on_headers=self._on_headers, hold_s=30
        )

    def rest(self) -> tuple[str, ...]:
        """What is left when the job has ended: a last line without an end."""
        rest, self._rest = self._rest, b""
        return (_text(rest),) if rest else ()

    def _on_headers(self, headers: Mapping[str, str]) -> None:
        self._etag = headers.get("ETag", "").strip('"')

    def _read(self, raw: bytes) -> tuple[str, ...]:
        lines: list[str] = []
        if self._etag.partition("-")[0] != self._place.partition("-")[0]:
            lines += self.rest()
        self._place = self._etag
        *whole, self._rest = (self._rest + raw).split(b"\n")
        return (*lines, *map(_text, whole))


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
