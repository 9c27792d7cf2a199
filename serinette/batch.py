"""Batches: many songs under one name, released gradually into the lowest lane (docs/batches.md).

Statuses and counts are OpenAI's where they fit. There is no `validating`: a batch is validated before it is accepted.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AwareDatetime, Field, StringConstraints, computed_field, field_validator

from serinette.credentials import Limits
from serinette.job import Artifact, JobError, LabelText, Usage
from serinette.names import Lane
from serinette.spec import BoundedInput, GenerationSpec, RecordModel, Task
from serinette.webhook import Delivery, OptionalWebhookUrl

MAX_LINES = 100_000
# Lines in one object of the store: the most lines of a batch in memory at a time.
PART_LINES = 250
# The lane that batches are released into.
LANE = Lane.LOW
# Labels that the gateway sets on each job of a batch.
BATCH_LABEL, LINE_LABEL = "batch", "line"


class BatchStatus(StrEnum):
    """A batch is in progress or paused until it ends, completed or canceled; songs that fail do not fail it."""

    IN_PROGRESS = "in_progress"
    PAUSED = "paused"
    CANCELING = "canceling"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether it has ended, unless it is retried."""
        return self in {BatchStatus.COMPLETED, BatchStatus.CANCELED}


class LineStatus(StrEnum):
    """Pending until its job is released; from then on the job's own status."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether the status is final in this round."""
        return self in {LineStatus.SUCCEEDED, LineStatus.FAILED, LineStatus.CANCELED}


CustomId = Annotated[str, StringConstraints(pattern=r"^[\w .:/@+-]{1,64}$")]


class BatchSpec(GenerationSpec):
    """One line: a song, and your own name for it."""

    custom_id: CustomId | None = Field(None, description="Yours, repeated in every result; each at most once.")

    @field_validator("task")
    @classmethod
    def _songs_alone(cls, task: Task) -> Task:
        if task.text_alone:
            raise ValueError(f"{task} generates no song, and a batch is of songs; send it with POST /v1/jobs")
        return task


class BatchOptions(BoundedInput):
    """Options of the batch as a whole."""

    name: LabelText | None = Field(None, description="Yours, for lists.")
    labels: dict[LabelText, LabelText] = Field(
        {}, max_length=14, description="Yours; each job of the batch gets them, and `batch` and `line` beside them."
    )
    timeout_s: int | None = Field(None, ge=10, le=6 * 3600, description="Longest run of each song.")
    webhook: OptionalWebhookUrl = Field(
        None, description="Gets a signed POST (Standard Webhooks) when the batch ends; must lead to a public address."
    )

    @field_validator("labels")
    @classmethod
    def _reserved_labels(cls, labels: dict[str, str]) -> dict[str, str]:
        if taken := {BATCH_LABEL, LINE_LABEL} & labels.keys():
            raise ValueError(
                f"must not hold {', '.join(sorted(taken))}: the gateway sets those on every job of a batch"
            )
        return labels


class Span(BoundedInput):
    """`count` whole numbers from `first`."""

    first: int = Field(ge=0)
    count: int = Field(ge=1, le=MAX_LINES)


class BatchRequest(BatchOptions):
    """A batch in one JSON body. Each of the specs is generated with every combination of the sweep's values."""

    specs: list[BatchSpec] = Field(min_length=1, max_length=MAX_LINES)
    sweep: dict[str, list[Any] | Span] = Field(
        {},
        description="Fields of a spec to vary, each by a list of values or `{first, count}`, e.g. "
        '`{"seed": {"first": 0, "count": 100}}`. The last one named varies fastest.',
    )


class BatchCounts(RecordModel):
    """Numbers of a batch's lines by status; `total`, `completed` and `failed` as OpenAI counts them."""

    total: int
    released: int = Field(0, description="Submitted to the queue, or ended.")
    queued: int = Field(0, description="Of those, waiting in the lane.")
    running: int = Field(0, description="Of those, being generated.")
    completed: int = Field(0, description="Succeeded.")
    failed: int = 0
    canceled: int = 0

    @property
    def ended(self) -> int:
        """Lines that have ended."""
        return self.completed + self.failed + self.canceled


class Batch(RecordModel):
    """A batch as its owner sees it. The counts are a few seconds old while it runs, and exact once it has ended."""

    id: str
    tenant: str
    name: str | None = None
    status: BatchStatus
    request_counts: BatchCounts
    round: int = Field(0, description="How often it was retried.")
    labels: dict[str, str] = Field({})
    timeout_s: int | None = None
    webhook: str | None = None
    deliveries: tuple[Delivery, ...] = ()
    waiting_for: str | None = Field(None, description="In words, why no lines are released now; null while they are.")
    created_at: AwareDatetime
    ended_at: AwareDatetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen, unless it is retried."""
        return self.status.ended

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented order; mypy knows no decorated property
    @property
    def fraction(self) -> float:
        """Share of the lines that have ended, 0 to 1."""
        return round(self.request_counts.ended / self.request_counts.total, 4)


class BatchLine(RecordModel):
    """Result of one line; a line of output.jsonl (succeeded) or errors.jsonl (the others)."""

    line: int = Field(description="From 1, as in the upload.")
    custom_id: str | None = None
    status: LineStatus
    job_id: str | None = Field(None, description="Its job, at /v1/jobs/{job_id}; null while it is pending.")
    seed: int | tuple[int, ...] | None = None
    artifacts: tuple[Artifact, ...] = Field((), description="Its songs, at /v1/jobs/{job_id}/audio?index=...")
    error: JobError | None = None
    usage: Usage | None = None

    def file_name(self, song: Artifact) -> str:
        """Of one of its songs: 000017.mp3, or 000017-yourname.mp3; 000017-yourname-1.mp3 for its second song."""
        words = [f"{self.line:06d}", re.sub(r"[^\w.-]", "_", self.custom_id or ""), str(song.index or "")]
        return f"{'-'.join(filter(None, words))}.{song.format}"


class LineOrder(RecordModel):
    """One validated line as it is in the store: all that its job needs."""

    custom_id: str | None = None
    pool: str
    digest: str
    timeout_s: int
    spec: dict[str, Any]  # GenerationSpec.to_wire


class BatchHeader(RecordModel):
    """`batch.json`: the immutable part of a batch. The batch exists once it is in the store."""

    version: int = 1
    id: str
    tenant: str
    name: str | None = None
    labels: dict[str, str] = Field({})
    timeout_s: int | None = None
    attempts: int = Field(description="Most attempts of each job.")
    webhook: str | None = None
    total: int
    part_lines: int = PART_LINES
    digest: str = Field(description="Of all lines and options as the client wrote them; also names the input.")
    limits: Limits | None = Field(None, description="The tenant's, where a file declared them when the batch was made.")
    sources: tuple[str, ...] = Field((), description="Uploads and jobs whose audio its lines use.")
    created_at: AwareDatetime

    @property
    def parts(self) -> int:
        """Number of parts that its lines are split into."""
        return -(-self.total // self.part_lines)

    def span(self, part: int) -> range:
        """The lines of a part, counted from 0."""
        first = part * self.part_lines
        return range(first, min(first + self.part_lines, self.total))


def keyed_batch_id(tenant: str, idempotency_key: str | None, secret: str | None = None) -> str:
    """The batch id of a tenant's Idempotency-Key; a new one without a key.

    With the deployment's `secret` no other tenant can compute it (docs/decisions/0013).
    """
    if idempotency_key is None:
        return f"batch-{uuid.uuid4().hex}"
    key, message = f"batch:{tenant}", idempotency_key
    if secret is not None:
        key, message = secret, f"{key}\n{idempotency_key}"
    return f"batch-{hmac.digest(key.encode(), message.encode(), hashlib.sha256).hex()[:32]}"


def is_batch_id(name: str) -> bool:
    """Whether an id is that of a batch."""
    return name.startswith("batch-")


def line_job_id(batch_id: str, line: int, round: int) -> str:
    """The job id of a line (from 0) in a round, so that a line released twice is one job."""
    digest = hashlib.sha256(f"{batch_id}/{line}/{round}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=5))


def line_seed(batch_id: str, line: int) -> int:
    """The seed of a line that names none: the same on every gateway and in every retry."""
    return int.from_bytes(hashlib.sha256(f"{batch_id}/{line}/seed".encode()).digest()[:4])
