"""Settings of the gateway and of the maintenance process."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from api.containers.settings import ContainerSettings
from api.tenancy.settings import TenancySettings
from serinette.names import DEFAULT_POOL
from serinette.pools import PoolName, PoolSettings
from serinette.settings import SharedSettings


class WebhookSettings(SharedSettings):
    """What gateway and maintenance must agree on about webhooks."""

    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs webhooks: `whsec_` and base64 of 24 to 64 bytes. Several, parted by spaces, all sign, so "
        "that it can be changed. None: no webhooks, but of tenants in `webhook_secrets`.",
    )
    webhook_secrets: Mapping[str, SecretStr] = Field(
        {}, description="Secrets of tenants that have their own, by tenant (JSON object in the environment)."
    )
    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description='Networks that webhooks may lead to though they are not public, e.g. `["10.20.0.0/16"]`. Any '
        "client that may submit can then make this server POST there.",
    )

    @model_validator(mode="after")
    def _secrets_can_sign(self) -> Self:
        told = dict(self.webhook_secrets)
        if self.webhook_secret is not None:
            told["webhook_secret"] = self.webhook_secret
        for name, secrets in told.items():
            if not secrets.get_secret_value().split() or not all(map(_can_sign, secrets.get_secret_value().split())):
                raise ValueError(
                    f"{name}: must be whsec_ and base64 of 24 to 64 bytes, e.g. from `openssl rand -base64 32`"
                )
        return self

    def signs_for(self, tenant: str | None) -> list[SecretStr]:
        """The secrets that sign a tenant's webhooks; none, and it has no webhooks."""
        told = self.webhook_secrets.get(tenant or "", self.webhook_secret)
        return [SecretStr(secret) for secret in told.get_secret_value().split()] if told else []


def _can_sign(secret: str) -> bool:
    try:
        return 24 <= len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) <= 64
    except binascii.Error:
        return False


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
        description="Job ids are made of it and the Idempotency-Key: the same on all gateways and for good, as after "
        "a change a key of before makes a new job. None: of tenant and key alone (docs/decisions/0013).",
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


class MaintenanceSettings(WebhookSettings, PoolSettings, ContainerSettings):
    """Read from the environment, once, in `main()`."""

    pool: PoolName = Field(DEFAULT_POOL, description="Pool for jobs that name no model: the gateway's.")
    interval_s: float = Field(2.0, gt=0, le=60, description="Pause between two rounds.")
    lease_s: float = Field(10.0, ge=2, le=60, description="How long a silent holder keeps the others out.")
    batch_backlog: int = Field(
        32,
        ge=1,
        description="Jobs that batches keep waiting in the lowest lane of a pool, at least; more where `pools` lists "
        "workers: four times what all of them hold or generate together.",
    )
    brake_failures: int = Field(
        3, ge=1, description="Loads of a model that failed in a row, after which no more of the pool's workers start."
    )
    brake_memory_s: float = Field(
        1800, gt=0, description="How long after the last of them they are let try again, when nothing else was heard."
    )
    brake_store_s: float = Field(60, gt=0, description="How long the store may be silent before no more workers start.")
    rehome_after_s: float = Field(
        300,
        gt=0,
        description="How long a pool must be out of `pools`, with no worker up, before its jobs go to another or fail.",
    )
    cluster_namespace: str | None = Field(
        None,
        description="Kubernetes namespace of the workers: what holds their pods is then reported to clients, and pods "
        "that hold work are marked. Needs the extra `cluster`. None: no cluster.",
    )
    cluster_kubeconfig: Path | None = Field(
        None,
        validation_alias=AliasChoices("SERINETTE_CLUSTER_KUBECONFIG", "KUBECONFIG"),
        description="How to reach it from outside; None: a pod's own service account.",
    )
    cluster_selector: str = Field(
        "app.kubernetes.io/component=worker", description="Labels that find the worker pods there."
    )
    cluster_protect: bool = Field(True, description="Mark pods that hold work, so that others are taken away first.")
    cluster_interval_s: float = Field(10.0, gt=0, le=30, description="Pause between two looks at the cluster.")
    retention_interval_s: float = Field(300, gt=0, description="Pause between two sweeps of the store.")
    webhook_attempts: int = Field(8, ge=1, le=20, description="Tries to deliver one webhook.")
    webhook_backoff_s: float = Field(
        5.0, gt=0, description="Pause after the first failed try; each further one is four times as long, up to 6 h."
    )
    webhook_timeout_s: float = Field(10.0, gt=0, le=60, description="Longest that one try may take.")
