"""Settings of keys, quotas and bounds. Part of the gateway's (api/settings.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from serinette.settings import SharedSettings
from serinette.webhook import is_loopback


class TenancySettings(SharedSettings):
    """Read from the environment, once, in `main()`."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    auth: bool = Field(False, description="Ask every request for a key; made with `serinette keys create`.")
    allow_anyone: bool = Field(
        False,
        description="Listen beyond this machine without asking for keys: any client that reaches the port may do all.",
    )
    keys_file: Path | None = Field(
        None, description="JSON file of tenants and digests of keys, e.g. a mounted Secret; read again as it changes."
    )
    key_in_path: bool = Field(
        False, description="Take a key from the path too, /k/{key}/..., for clients that send no header."
    )
    key_cache_s: float = Field(
        2.0, ge=0, le=10, description="How long a gateway remembers a key: a revoked one may be taken for so long."
    )
    link_s: int = Field(900, ge=10, le=86_400, description="Life of a signed link to a job's audio and events.")
    max_waiting: int = Field(10_000, ge=1, description="Jobs that may wait in one lane; beyond them a submit is 429.")

    @model_validator(mode="after")
    def _no_one_gets_in_unasked(self) -> Self:
        if self.auth or self.allow_anyone or is_loopback(self.host):
            return self
        raise ValueError(
            f"host: listening on {self.host} without keys would let anyone in. Set SERINETTE_AUTH=true and make a key "
            "with `serinette keys create`, or set SERINETTE_ALLOW_ANYONE=true where the network keeps strangers out"
        )
