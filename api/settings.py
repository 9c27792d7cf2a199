"""Settings of the gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from serinette.names import DEFAULT_POOL
from serinette.pools import PoolName, PoolSettings
from serinette.settings import ContainerSettings, SharedSettings
from serinette.webhook import is_loopback
from serinette.webhook_targets import WebhookSettings


class TenancySettings(SharedSettings):
    """Read from the environment, once, in `main()`."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    auth: bool = Field(False, description="Require a key on every request; made with `serinette keys create`.")
    allow_anyone: bool = Field(
        False,
        description="Listen beyond this machine without keys: any client that reaches the port may do everything.",
    )
    keys_file: Path | None = Field(
        None, description="JSON file of tenants and digests of keys, e.g. a mounted Secret; read again as it changes."
    )
    key_in_path: bool = Field(
        False, description="Accept a key in the path, too, /k/{key}/..., for clients that cannot send headers."
    )
    key_cache_s: float = Field(
        2.0, ge=0, le=10, description="How long a gateway caches a key: a revoked one may be accepted for so long."
    )
    link_s: int = Field(900, ge=10, le=86_400, description="Lifetime of a signed link to a job's audio and events.")
    max_waiting: int = Field(10_000, ge=1, description="Jobs that may wait in one lane; a submit above is 429.")

    @model_validator(mode="after")
    def _open_only_on_purpose(self) -> Self:
        if self.auth or self.allow_anyone or is_loopback(self.host):
            return self
        raise ValueError(
            f"host: listening on {self.host} without keys would let anyone in. Set SERINETTE_AUTH=true and make a key "
            "with `serinette keys create`, or set SERINETTE_ALLOW_ANYONE=true where the network keeps others out"
        )


class GatewaySettings(TenancySettings, WebhookSettings, PoolSettings, ContainerSettings):
    """Read from the environment, once, in `main()`."""

    port: int = Field(8019, ge=0, le=65_535, description="Port to listen on; the seed's clients expect 8019.")
    pool: PoolName = Field(DEFAULT_POOL, description="Pool for jobs that name no model.")
    # NoDecode, because values in charts and shells are seldom JSON.
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins that browsers may call from, with commas between them or as JSON; none by default."
    )
    job_timeout_s: int = Field(1800, ge=10, le=6 * 3600, description="Longest run of a job that sets none.")
    max_attempts: int = Field(3, ge=1, le=10, description="Attempts before a job fails for good.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Longest JSON or form body.")
    max_batch_bytes: int = Field(
        256 * 1024 * 1024, ge=1024, description="Longest JSON Lines file of a batch. A batch as JSON is a JSON body."
    )
    max_batches: int = Field(100, ge=1, description="Unfinished batches of one tenant; a new one above is 429.")
    max_upload_bytes: int = Field(200 * 1024 * 1024, ge=1024, description="Longest uploaded audio file.")
    max_upload_duration_s: float = Field(600, gt=0, description="Longest uploaded audio.")
    idempotency_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="Job and batch ids are derived from it and the Idempotency-Key. It must be the same on all "
        "gateways and must not change, or an earlier key makes a new job. None: from tenant and key "
        "(docs/decisions/0013).",
    )
    max_wait_s: float = Field(50, gt=0, le=300, description="Longest that one request waits for its song.")
    presign_s: int = Field(3600, ge=60, le=604_800, description="Lifetime of a presigned URL.")
    drain_timeout_s: int = Field(30, ge=0, description="On SIGTERM, how long open requests may still finish.")
    durability: Literal["process", "fsync"] = Field(
        "process",
        description="fsync: a submit is answered once it is on the disk of the queue's server (WAITAOF, up to a second "
        "more). process: once it is in the server's memory. docs/durability.md says what each survives.",
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
