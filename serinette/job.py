"""Jobs: the model that the gateway answers with, and the record in the store, `job.json`."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    AwareDatetime,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    computed_field,
    field_serializer,
)

from serinette.container import ContainerSpec, Run
from serinette.names import DEFAULT_POOL, Lane
from serinette.spec import AudioFormat, BoundedInput, GenerationSpec, Planned, RecordModel
from serinette.webhook import Delivery, OptionalWebhookUrl


class JobStatus(StrEnum):
    """A job is queued or running until it ends in exactly one of the other three."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether the status is final."""
        return self in ENDED


# The last event of every job is named like one of these, too.
ENDED = frozenset((JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED))


class Stage(StrEnum):
    """What a running job is doing, in order."""

    STARTING = "starting"
    WAITING_FOR_ENGINE = "waiting_for_engine"
    FETCHING = "fetching"
    PLANNING = "planning"
    CONDITIONING = "conditioning"
    COMPUTING = "computing"
    DENOISING = "denoising"
    DECODING = "decoding"
    ENCODING = "encoding"
    UPLOADING = "uploading"


class AttemptOutcome(StrEnum):
    """How one attempt ended. `returned` and `superseded` do not count against the job."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    RETURNED = "returned"
    SUPERSEDED = "superseded"


class Progress(RecordModel):
    """Progress of a running job."""

    stage: Stage
    step: int | None = Field(None, description="Denoising steps done; while it is planned, tokens.")
    steps: int | None = Field(None, description="Denoising steps in all; of tokens, null where the planner decides.")
    engine_s: float | None = Field(None, description="Seconds in the engine so far, without waits for it.")
    at: AwareDatetime

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented order; mypy knows no decorated property
    @property
    def fraction(self) -> float:
        """Share of the work done, 0 to 1, for a progress bar: denoising counts as 80 %."""
        before, share = _SHARE[self.stage]
        return round(before + (share * self.step / self.steps if self.step and self.steps else 0.0), 3)


_SHARE = {
    Stage.STARTING: (0.0, 0.0),
    Stage.WAITING_FOR_ENGINE: (0.0, 0.0),
    Stage.FETCHING: (0.01, 0.0),
    Stage.PLANNING: (0.01, 0.02),
    Stage.CONDITIONING: (0.03, 0.0),
    Stage.COMPUTING: (0.05, 0.0),
    Stage.DENOISING: (0.05, 0.8),
    Stage.DECODING: (0.85, 0.0),
    Stage.ENCODING: (0.92, 0.0),
    Stage.UPLOADING: (0.97, 0.0),
}


class JobError(RecordModel):
    """Why a job or an attempt failed."""

    code: str = Field(description="A `code` of serinette.errors.")
    message: str
    retryable: bool = False


class Attempt(RecordModel):
    """One claim of the job by one slot."""

    number: int = Field(description="From 1.")
    id: str = Field(description="Unique; part of the artifacts' names.")
    worker: str
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    outcome: AttemptOutcome = AttemptOutcome.RUNNING
    error: JobError | None = None


class Artifact(RecordModel):
    """One song in the store."""

    index: int
    key: str = Field(description="Object key in the store.")
    seed: int
    format: AudioFormat
    content_type: str
    size_bytes: int
    sha256: str
    duration_s: float
    sample_rate: int
    channels: int
    plan: Planned | None = Field(None, description="What the planner wrote for it; null of a song without `thinking`.")

    def generated_from(self, spec: GenerationSpec) -> GenerationSpec:
        """A job's spec, with what the planner wrote for this song."""
        return self.plan.applied_to(spec, None) if self.plan else spec

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated properties
    @property
    def url(self) -> str:
        """Where the gateway serves it, seen from the gateway's own URL."""
        job_id = self.key.rpartition("/")[0].rpartition("/")[2]
        return f"/v1/jobs/{job_id}/audio?index={self.index}"

    @property
    def etag(self) -> str:
        """Changes with the bytes."""
        return self.sha256


class Sampling(RecordModel):
    """Sampling parameters after the checkpoint's defaults were filled in."""

    steps: int
    guidance_scale: float
    shift: float
    turbo: bool


class Timings(RecordModel):
    """Seconds spent."""

    queue_s: float = Field(description="From submit to the start of the winning attempt.")
    # Older records have the name `sing_s`.
    generate_s: float = Field(
        validation_alias=AliasChoices("generate_s", "sing_s"), description="In the engine, generating."
    )
    encode_s: float
    upload_s: float
    run_s: float = Field(description="From the start of the winning attempt to its end.")


class Result(RecordModel):
    """Result of a succeeded job: keys and numbers, never bytes of audio."""

    artifacts: tuple[Artifact, ...] = Field(description="The songs; none of a task whose result is text.")
    texts: tuple[Planned, ...] = Field((), description="Text of tasks `write` and `format`, one for each variation.")
    model: str
    model_revision: str
    sampling: Sampling | None = Field(None, description="Of songs; null of text.")
    timings: Timings
    warnings: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of all songs."""
        return sum(artifact.size_bytes for artifact in self.artifacts)


class Usage(RecordModel):
    """Usage of a job, reported once it has ended."""

    gpu_s: float = Field(0.0, description="Seconds in the engine: of the last attempt and of failed ones.")
    queue_s: float = Field(0.0, description="From submit to the start of the last attempt, or to the end without one.")
    size_bytes: int = Field(0, description="Of its songs.")


class Record(RecordModel):
    """`job.json`: all that must survive Redis. Written once: by the attempt that succeeds, or by the process that ends
    the job without a song, so that an earlier attempt that is still running can no longer succeed.
    """

    version: int = 1
    job_id: str
    tenant: str
    pool: str = DEFAULT_POOL
    lane: Lane = Lane.NORMAL
    labels: dict[str, str] = Field({})
    dialect: dict[str, str] = Field(default={}, description="Fields that a dialect needs for its later answers.")
    digest: str = Field("", description="Of the client's request: whether a repeated Idempotency-Key has the same.")
    spec: GenerationSpec
    attempt: Attempt | None = Field(None, description="The last one; null when no worker began the job.")
    attempts: tuple[Attempt, ...] = Field((), description="The last ten, oldest first, including `attempt`.")
    timeout_s: int | None = None
    webhook: str | None = None
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime
    status: JobStatus = JobStatus.SUCCEEDED
    error: JobError | None = None
    usage: Usage | None = None
    result: Result | None = Field(None, description="Of a succeeded job.")
    container: ContainerSpec | None = Field(None, description="Spec of a container; `spec` is then empty.")
    run: Run | None = Field(None, description="Result of a container.")

    @field_serializer("spec", mode="wrap")
    def _spec_as_asked(self, spec: GenerationSpec, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Read again, what was left to a planner is not taken for given."""
        return {name: value for name, value in dump(spec).items() if name not in spec.left_to_text}

    @property
    def keys(self) -> tuple[str, ...]:
        """Object keys of its files, without the record itself."""
        return (*(artifact.key for artifact in self.artifacts), *(self.run.keys if self.run else ()))

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """Its songs."""
        return self.result.artifacts if self.result else ()


LabelText = Annotated[str, StringConstraints(pattern=r"^[\w .:/@+-]{1,63}$")]


class JobOptions(BoundedInput):
    """Options of a job that do not change its song."""

    lane: Lane = Field(Lane.NORMAL, description="Priority inside the pool.")
    timeout_s: int | None = Field(None, ge=10, le=6 * 3600, description="Longest run; null means the default.")
    labels: dict[LabelText, LabelText] = Field({}, max_length=16, description="Yours; jobs can be listed by them.")
    start_deadline_s: int | None = Field(
        None, ge=1, le=30 * 86_400, description="A job that no worker starts within so many seconds fails as `expired`."
    )
    webhook: OptionalWebhookUrl = Field(
        None, description="Gets a signed POST (Standard Webhooks) when the job ends; must lead to a public address."
    )


class WaitingCode(StrEnum):
    """What a job waits for, for programs."""

    WORKER = "worker"  # none is up
    FROM_ZERO = "from_zero"  # none is up, and the first one starts for the job
    BRAKE = "brake"  # none is up, and no more are started
    POD = "pod"  # none is up, and the cluster holds their pods back
    MODEL = "model"  # which loads
    RESTART = "restart"  # of a worker that failed
    CONFIGURATION = "configuration"  # of a worker, which refuses it or its model
    DISK = "disk"  # of a worker, which is full
    STORE = "store"  # to which workers first have to bring songs that they keep
    QUEUE = "queue"  # whose server takes no writes
    SUSPENDED = "suspended"  # by an operator
    ENGINE = "engine"  # which generates for another job
    AHEAD = "ahead"  # jobs before it in its lane
    LANES = "lanes"  # jobs in the lanes above
    SLOT = "slot"  # a free worker
    TAKEN = "taken"  # a worker is taking it
    CANCEL = "cancel"  # its worker stops
    ROOM = "room"  # for a container


class Job(RecordModel):
    """A job as its owner sees it."""

    id: str
    tenant: str
    status: JobStatus
    spec: GenerationSpec
    pool: str
    lane: Lane
    labels: dict[str, str] = Field({})
    dialect: dict[str, str] = Field(default={}, exclude=True)
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    timeout_s: int | None = None
    start_by: AwareDatetime | None = Field(None, description="When it fails as `expired` unless a worker starts it.")
    webhook: str | None = Field(None, description="URL that gets a POST when it ends.")
    deliveries: tuple[Delivery, ...] = Field((), description="Delivery attempts so far.")
    cancel_requested: bool = False
    progress: Progress | None = None
    attempts: tuple[Attempt, ...] = ()
    position: int | None = Field(None, description="Place in the lane from 1; null when running, ended or far back.")
    eta_s: float | None = Field(None, description="Seconds until the song is likely ready; null when unknown.")
    waiting_for: str | None = Field(None, description="In words, what the job waits for; null when it does not wait.")
    waiting_code: Annotated[WaitingCode | str, Field(union_mode="left_to_right")] | None = Field(
        None, description="The same for programs; a newer server may have codes of its own."
    )
    result: Result | None = None
    container: ContainerSpec | None = Field(None, description="Spec of a container; `spec` is then empty.")
    run: Run | None = Field(None, description="Result of a container, once it has ended.")
    error: JobError | None = None
    usage: Usage | None = Field(None, description="Usage of the job; null until it has ended.")


def now() -> datetime:
    """The current time, aware."""
    return datetime.now(UTC)


class Upload(RecordModel):
    """`upload.json`: written once the bytes were decoded as audio; without it an upload cannot be used."""

    id: str = Field(description="Give it as `source_audio` or `reference_audio`.")
    duration_s: float
    sample_rate: int
    channels: int
    codec: str
    container: str
    size_bytes: int
    sha256: str
    created_at: AwareDatetime


class UploadedFile(RecordModel):
    """`file.json`: record of an uploaded file of any type, which only containers can use."""

    id: str = Field(description="Give it as `upload` of one of a container's `inputs`.")
    size_bytes: int
    sha256: str
    created_at: AwareDatetime
