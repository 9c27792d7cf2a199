"""Settings of the gateway and of the maintenance process."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from serinette.names import DEFAULT_POOL
from serinette.settings import SharedSettings


class GatewaySettings(SharedSettings):
    """Read from the environment, once, in `main()`."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8019, ge=0, le=65_535, description="Port to listen on; the seed's clients expect 8019.")
    pool: str = Field(DEFAULT_POOL, description="Pool for jobs that name no model.")
    # NoDecode: a chart's value and a shell's are seldom JSON.
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins that browsers may call from, with commas between them or as JSON; none by default."
    )
    job_timeout_s: int = Field(1800, ge=10, le=6 * 3600, description="Longest run of a job that sets none.")
    max_attempts: int = Field(3, ge=1, le=10, description="Attempts before a job fails for good.")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="Longest JSON or form body.")
    max_upload_bytes: int = Field(200 * 1024 * 1024, ge=1024, description="Longest uploaded audio file.")
    max_upload_duration_s: float = Field(600, gt=0, description="Longest uploaded audio.")
    max_wait_s: float = Field(50, gt=0, le=300, description="Longest that one request waits for its song.")
    presign_s: int = Field(3600, ge=60, le=604_800, description="Life of a presigned URL.")
    drain_timeout_s: int = Field(30, ge=0, description="On SIGTERM, how long open requests may still finish.")

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


class MaintenanceSettings(SharedSettings):
    """Read from the environment, once, in `main()`."""

    interval_s: float = Field(2.0, gt=0, le=60, description="Pause between two rounds.")
    lease_s: float = Field(10.0, ge=2, le=60, description="How long a silent holder keeps the others out.")
    orphan_grace_s: float = Field(10.0, gt=0, description="How long a job may be in no list before it is put back.")
    retention_interval_s: float = Field(300, gt=0, description="Pause between two sweeps of the store.")
