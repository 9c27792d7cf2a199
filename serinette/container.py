"""Any container as a job: its spec, the operator's ceilings, and its result."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from serinette.errors import InvalidSpec
from serinette.spec import AudioId, BoundedInput, PublishedName, RecordModel, without_control_characters

# The pool whose lanes containers wait in; the controller serves it, not workers.
CONTAINERS_POOL = "containers"

MAX_INPUTS = 32
# Most bytes of command, args and env: Kubernetes accepts objects below 1.5 MiB, and Linux arguments below 2 MiB.
MAX_WORDS_BYTES = 256 * 1024
_JOB_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

# Fully qualified, so that no default registry is used: host/repository, a tag, a digest.
_REPOSITORY = r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)"
_TAG = r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
_IMAGE_CHARACTERS = 400
_IMAGE = re.compile(rf"{_REPOSITORY}+{_TAG}")


def _in_full(image: object) -> object:
    if isinstance(image, str) and len(image) <= _IMAGE_CHARACTERS and not _IMAGE.fullmatch(image):
        raise ValueError(
            "image: must be written in full, registry/repository:tag or registry/repository@sha256:..., "
            "as in registry.example/audio/stems:1"
        )
    return image


# The validator gives a readable error; the pattern is for the OpenAPI document.
Image = Annotated[
    str, StringConstraints(pattern=rf"^{_REPOSITORY}+{_TAG}$", max_length=_IMAGE_CHARACTERS), BeforeValidator(_in_full)
]
# An entry of the operator's list: registry, `registry/path/`, repository, or one with its tag or digest.
AllowedImage = Annotated[str, StringConstraints(pattern=rf"^{_REPOSITORY}*(?:/|{_TAG})$", max_length=400)]

EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
# Path below /inputs or /outputs: plain segments, none of which begins with a dot.
_FILE = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}){0,7}"
_FILE_NAME = re.compile(_FILE)
FileName = Annotated[str, StringConstraints(pattern=f"^{_FILE}$")]
Word = Annotated[str, StringConstraints(max_length=8_192), AfterValidator(without_control_characters)]


class Input(BoundedInput):
    """A file or prefix of the tenant that is downloaded below `/inputs` before the command starts."""

    path: FileName = Field(description="Its name below /inputs; of a prefix, the directory.", examples=["song.mp3"])
    artifact: AudioId | None = Field(None, description="`{job_id}/{index}`: a song of an earlier job.")
    upload: AudioId | None = Field(None, description="Id of an upload.")
    prefix: str | None = Field(
        None,
        pattern=rf"^(songs/{_JOB_ID}|uploads/upload-[0-9a-f]{{32}})/$",
        description="All objects of a job or upload of yours: `songs/{job_id}/` or `uploads/{upload_id}/`.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.artifact, self.upload, self.prefix)) != 1:
            raise ValueError(f"inputs: {self.path} needs exactly one of artifact, upload and prefix")
        if self.artifact is not None and "/" not in self.artifact:
            raise ValueError("artifact: must be {job_id}/{index}")
        return self


class ContainerSpec(BoundedInput):
    """An image, a command, and the resources they need."""

    image: Image = Field(
        description="Fully qualified, one that the operator allows.", examples=["registry.example/a/b:1"]
    )
    command: tuple[Word, ...] = Field((), max_length=64, description="In place of the image's entrypoint.")
    args: tuple[Word, ...] = Field((), max_length=256, description="In place of the image's arguments.")
    env: dict[EnvName, Word] = Field({}, max_length=64, description="Environment.")
    secrets: dict[EnvName, PublishedName] = Field(
        {}, max_length=16, description="Environment from secrets that the operator published, by name."
    )
    gpus: int = Field(0, ge=0, le=64)
    cpu: float = Field(1.0, ge=0.1, le=256, description="Cores.")
    memory_mib: int = Field(2048, ge=64, le=4_194_304)
    disk_mib: int = Field(4096, ge=64, le=16_777_216, description="Ephemeral: inputs, outputs and /tmp together.")
    retries: int = Field(0, ge=0, le=9, description="Further attempts after a retryable failure.")
    pool: PublishedName | None = Field(None, description="Kind of machines, by the operator's name.")
    inputs: tuple[Input, ...] = Field((), max_length=MAX_INPUTS)
    writable_root: bool = Field(False, description="Write outside /outputs and /tmp; only for images that may.")

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        if both := set(self.env) & set(self.secrets):
            raise ValueError(f"secrets: {min(both)} is in env too; name it once")
        paths = [each.path for each in self.inputs]
        for path in paths:
            if any(path != other and other.startswith(f"{path}/") for other in paths) or paths.count(path) > 1:
                raise ValueError(f"inputs: {path} is the path of two inputs, or lies above another's")
        return self

    @model_validator(mode="after")
    def _fits_a_pod(self) -> Self:
        words = (*self.command, *self.args, *self.env, *self.env.values())
        if (size_bytes := sum(len(word.encode()) for word in words)) > MAX_WORDS_BYTES:
            raise ValueError(
                f"args: command, args and env hold {size_bytes} bytes, and may hold {MAX_WORDS_BYTES} together; "
                "bring more as an input"
            )
        return self

    def digest(self) -> str:
        """SHA-256 of all fields that differ from their defaults: compares specs of a repeated Idempotency-Key."""
        wire = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(b"container\n" + wire.encode()).hexdigest()

    def to_wire(self) -> dict[str, Any]:
        """JSON for the queue."""
        return self.model_dump(mode="json", exclude_defaults=True)


class Ceilings(BoundedInput):
    """Most resources of one container of a tenant."""

    gpus: int = Field(1, ge=0, le=64)
    cpu: float = Field(8.0, ge=0.1, le=256)
    memory_mib: int = Field(32_768, ge=64)
    disk_mib: int = Field(102_400, ge=64)
    timeout_s: int = Field(6 * 3600, ge=10, le=6 * 3600)

    def check(self, spec: ContainerSpec, timeout_s: int | None) -> None:
        """Check that a container stays below the ceilings.

        Raises:
            InvalidSpec: `field` names the resource that does not.
        """
        requested = {name: getattr(spec, name) for name in ("gpus", "cpu", "memory_mib", "disk_mib")}
        for name, value in (*requested.items(), ("timeout_s", timeout_s or 0)):
            if value > getattr(self, name):
                raise InvalidSpec(f"{name}: must be at most {getattr(self, name)} here, not {value}", field=name)


class Output(RecordModel):
    """One file that the container wrote below /outputs."""

    name: str = Field(description="Below /outputs.")
    key: str = Field(description="Object key in the store.")
    size_bytes: int
    sha256: str


class Run(RecordModel):
    """Result of a container, whether or not it succeeded."""

    exit_code: int | None = Field(None, description="Null when it never ran, or its end was not observed.")
    outputs: tuple[Output, ...] = ()
    log_key: str | None = Field(None, description="Object key of its whole log.")
    log_size_bytes: int = 0
    warnings: tuple[str, ...] = Field((), description="Outputs or parts of the log that were left out, and why.")

    @property
    def keys(self) -> tuple[str, ...]:
        """Object keys of its outputs and log."""
        return (*(output.key for output in self.outputs), *([self.log_key] if self.log_key else []))

    @property
    def size_bytes(self) -> int:
        """Size of all its outputs and its log."""
        return sum(output.size_bytes for output in self.outputs) + self.log_size_bytes


def is_file_name(name: str) -> bool:
    """Whether a name is allowed below /inputs and /outputs: no `..`, no special characters of URLs or file systems."""
    return _FILE_NAME.fullmatch(name) is not None


def allowed_by(image: str, entries: Iterable[str]) -> bool:
    """Whether an entry of an allow-list allows the image."""
    repository, tag, digest = _parts(image)
    for entry in entries:
        if entry.endswith("/") or "/" not in entry:
            if repository.startswith(entry.rstrip("/") + "/"):
                return True
            continue
        of, tagged, digested = _parts(entry)
        if repository == of and tagged in {"", tag} and digested in {"", digest}:
            return True
    return False


def _parts(image: str) -> tuple[str, str, str]:
    """Repository, tag and digest."""
    name, _, digest = image.partition("@")
    path, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return path + slash + last, tag, digest
