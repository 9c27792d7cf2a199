"""Settings of the gateway."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from api.tenancy.settings import TenancySettings
from serinette.container_settings import ContainerSettings
from serinette.names import DEFAULT_POOL
from serinette.pools import PoolName, PoolSettings
from serinette.webhook_targets import WebhookSettings


class GatewaySettings(TenancySettings, WebhookSettings, PoolSettings, ContainerSettings):
    """Read from the environment, once, in `main()`."""

    port: int = Field(8019, ge=0, le=65_535, description="Port to listen on; the seed's clients expect 8019.")
    pool: PoolName = Field(DEFAULT_POOL, description="Pool for jobs that name no model.")
    # NoDecode: a chart's value and a shell's are seldom JSON.
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins that browsers may call from, with commas between them or as JSON; none by default."
    )
    job_timeout_s: int = Field(1800, ge=10, le=6 * 3600, description="Longest run of a job that sets none.")
    max_attempts: int = Field(3, ge=1, le=10, description="Attempts before a job fails for good.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Longest JSON or form body.")
    max_batch_bytes: int = Field(
        256 * 1024 * 1024, ge=1024, description="Longest JSON Lines file of a batch. A batch as JSON is a JSON body."
    )
    max_batches: int = Field(100, ge=1, description="Unfinished batches of one tenant; beyond them a new one is 429.")
    max_upload_bytes: int = Field(200 * 1024 * 1024, ge=1024, description="Longest uploaded audio file.")
    max_upload_duration_s: float = Field(600, gt=0, description="Longest uploaded audio.")
    idempotency_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Job and batch ids are made of it and the Idempotency-Key: the same on all gateways and for good, "
        "as after a change a key of before makes a new job. None: of tenant and key alone (docs/decisions/0013).",
    )
    max_wait_s: float = Field(50, gt=0, le=300, description="Longest that one request waits for its song.")
    presign_s: int = Field(3600, ge=60, le=604_800, description="Life of a presigned URL.")
    drain_timeout_s: int = Field(30, ge=0, description="On SIGTERM, how long open requests may still finish.")
    durability: Literal["process", "fsync"] = Field(
        "process",
        description="fsync: a submit is answered once the queue's server has it on its disk (WAITAOF, up to a second "
        "more). process: once the server has it. docs/durability.md says what each survives.",
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if not value.lstrip().startswith("["):
            return tuple(origin for part in value.split(",") if (origin := part.strip()))
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('must be like https://a.example,https://b.example or ["https://a.example"]') from None
