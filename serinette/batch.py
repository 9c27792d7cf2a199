"""Batches: many songs under one name, released into the lowest lane at a pace (docs/batches.md).

Statuses and counts are OpenAI's where they fit. Nothing is ever `validating`: a batch that is answered is valid.
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, computed_field, field_validator

from serinette.credentials import Limits
from serinette.job import Artifact, JobError, LabelText, Usage
from serinette.names import Lane
from serinette.spec import BoundedInput, GenerationSpec
from serinette.webhook import Delivery, WebhookUrl

MAX_LINES = 100_000
# Lines that lie together in the store: what is in memory at a time of a batch, whatever its size.
PART_LINES = 250
# The lane that batches are released into.
LANE = Lane.LOW
# Labels that each of a batch's jobs gets from us.
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
        """Whether nothing more will happen, unless it is retried."""
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
        """Whether it stays so in this round."""
        return self in {LineStatus.SUCCEEDED, LineStatus.FAILED, LineStatus.CANCELED}


class _Model(BaseModel):
    # Records outlive versions: an older reader drops what it does not know.
    model_config = ConfigDict(frozen=True, extra="ignore")


CustomId = Annotated[str, StringConstraints(pattern=r"^[\w .:/@+-]{1,64}$")]


class BatchSpec(GenerationSpec):
    """One line: a song, and your own name for it."""

    custom_id: CustomId | None = Field(None, description="Yours, repeated in every result; each at most once.")


class BatchOptions(BoundedInput):
    """Of the batch and not of its songs."""

    name: LabelText | None = Field(None, description="Yours, for lists.")
    labels: dict[LabelText, LabelText] = Field(
        {}, max_length=14, description="Yours; each job of the batch gets them, and `batch` and `line` beside them."
    )
    timeout_s: int | None = Field(None, ge=10, le=6 * 3600, description="Longest run of each song.")
    webhook: WebhookUrl | None = Field(
        None, description="Gets a signed POST (Standard Webhooks) when the batch ends; must lead to a public address."
    )

    @field_validator("labels")
    @classmethod
    def _ours_are_ours(cls, labels: dict[str, str]) -> dict[str, str]:
        if taken := {BATCH_LABEL, LINE_LABEL} & labels.keys():
            raise ValueError(f"must not hold {', '.join(sorted(taken))}: every job of a batch gets those from us")
        return labels


class Span(BoundedInput):
    """So many whole numbers from the first on."""

    first: int = Field(ge=0)
    count: int = Field(ge=1, le=MAX_LINES)


class BatchRequest(BatchOptions):
    """A batch in one JSON body. Each of the specs is generated with every combination of the sweep's values."""

    specs: list[BatchSpec] = Field(min_length=1, max_length=MAX_LINES)
    sweep: dict[str, list[Any] | Span] = Field(
        {},
        description="Fields of a spec to go through, each by a list of values or `{first, count}`, e.g. "
        '`{"seed": {"first": 0, "count": 100}}`. The last one named turns fastest.',
    )


class BatchCounts(_Model):
    """How many of a batch's lines are where; `total`, `completed` and `failed` as OpenAI counts them."""

    total: int
    released: int = Field(0, description="Given to the queue, or ended.")
    queued: int = Field(0, description="Of those, waiting in the lane.")
    running: int = Field(0, description="Of those, being generated.")
    completed: int = Field(0, description="Succeeded.")
    failed: int = 0
    canceled: int = 0

    @property
    def ended(self) -> int:
        """Lines of which nothing more will come."""
        return self.completed + self.failed + self.canceled


class Batch(_Model):
    """A batch as its owner sees it. The counts are a few seconds old while it goes on, and exact once it has ended."""

    id: str
    tenant: str
    name: str | None = None
    status: BatchStatus
    request_counts: BatchCounts
    round: int = Field(0, description="How often it was retried.")
    labels: dict[str, str] = {}
    timeout_s: int | None = None
    webhook: str | None = None
    deliveries: tuple[Delivery, ...] = ()
    waiting_for: str | None = Field(None, description="In words, why no more lines are released now; null: they are.")
    created_at: AwareDatetime
    ended_at: AwareDatetime | None = None

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented order; mypy knows no decorated property
    @property
    def fraction(self) -> float:
        """Share of the lines that have ended, 0 to 1."""
        return round(self.request_counts.ended / self.request_counts.total, 4)


class BatchLine(_Model):
    """What became of one line; a line of output.jsonl (songs) or errors.jsonl (the others)."""

    line: int = Field(description="From 1, as in the upload.")
    custom_id: str | None = None
    status: LineStatus
    job_id: str | None = Field(None, description="Its job, at /v1/jobs/{job_id}; null while it is pending.")
    seed: int | None = None
    artifacts: tuple[Artifact, ...] = Field((), description="Its songs, at /v1/jobs/{job_id}/audio?index=...")
    error: JobError | None = None
    usage: Usage | None = None


class LineOrder(_Model):
    """One line as it lies in the store, checked: all that its job is made of."""

    custom_id: str | None = None
    pool: str
    digest: str
    timeout_s: int
    spec: dict[str, Any]  # GenerationSpec.to_wire


class BatchHeader(_Model):
    """`batch.json`: a batch's unchanging part. Its existence in the store makes the batch."""

    version: int = 1
    id: str
    tenant: str
    name: str | None = None
    labels: dict[str, str] = {}
    timeout_s: int | None = None
    attempts: int = Field(description="Most attempts of each job.")
    webhook: str | None = None
    total: int
    part_lines: int = PART_LINES
    digest: str = Field(description="Of all lines and options as the client wrote them; also names the input.")
    limits: Limits | None = Field(None, description="The tenant's, where a file declared them when the batch was made.")
    sources: tuple[str, ...] = Field((), description="Uploads and jobs whose audio its lines start from.")
    created_at: AwareDatetime

    @property
    def parts(self) -> int:
        """Into how many parts its lines are cut."""
        return -(-self.total // self.part_lines)

    def span(self, part: int) -> range:
        """The lines of a part, counted from 0."""
        first = part * self.part_lines
        return range(first, min(first + self.part_lines, self.total))


def keyed_batch_id(tenant: str, idempotency_key: str | None, secret: str | None = None) -> str:
    """The id that an Idempotency-Key of a tenant stands for; a new one without a key.

    With the deployment's `secret` no other tenant can compute it (docs/decisions/0013).
    """
    if idempotency_key is None:
        return f"batch-{uuid.uuid4().hex}"
    key, said = f"batch:{tenant}", idempotency_key
    if secret is not None:
        key, said = secret, f"{key}\n{idempotency_key}"
    return f"batch-{hmac.digest(key.encode(), said.encode(), hashlib.sha256).hex()[:32]}"


def is_batch_id(name: str) -> bool:
    """Whether an id is a batch's and not a job's."""
    return name.startswith("batch-")


def line_job_id(batch_id: str, line: int, round: int) -> str:
    """The job of a line (from 0) in a round: however often it is released, it is one job."""
    digest = hashlib.sha256(f"{batch_id}/{line}/{round}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=5))


def line_seed(batch_id: str, line: int) -> int:
    """The seed of a line that names none: drawn once, for every gateway and every retry the same."""
    return int.from_bytes(hashlib.sha256(f"{batch_id}/{line}/seed".encode()).digest()[:4])
