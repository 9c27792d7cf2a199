"""Settings of the controller."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import AliasChoices, Field, model_validator

from serinette.names import DEFAULT_POOL
from serinette.pools import PoolName, PoolSettings
from serinette.settings import ContainerSettings
from serinette.webhook_targets import WebhookSettings


class ControllerSettings(WebhookSettings, PoolSettings, ContainerSettings):
    """Read from the environment, once, in `main()`."""

    @model_validator(mode="after")
    def _a_lost_lease_is_found(self) -> Self:
        if self.interval_s > self.heartbeat_ttl_s / 2:
            raise ValueError(
                "SERINETTE_INTERVAL_S: must be at most half of SERINETTE_HEARTBEAT_TTL_S "
                f"({self.heartbeat_ttl_s / 2:g}): a job whose worker died waits for the next round after its lease"
            )
        return self

    pool: PoolName = Field(DEFAULT_POOL, description="Pool for jobs that name no model: the gateway's.")
    interval_s: float = Field(2.0, gt=0, le=60, description="Pause between two rounds.")
    lease_s: float = Field(
        10.0, ge=2, le=60, description="How long a leader that fell silent keeps the other replicas from leading."
    )
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
        1800,
        gt=0,
        description="How long after the last failure workers may start again, when no worker has reported since.",
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
        "app.kubernetes.io/name=serinette,app.kubernetes.io/component=worker",
        description="Labels that find the worker pods there.",
    )
    cluster_deployments: str = Field(
        "serinette-worker-", description="Start of the names of the pools' Deployments there, before the pool's own."
    )
    cluster_protect: bool = Field(True, description="Mark pods that hold work, so that others are taken away first.")
    cluster_interval_s: float = Field(10.0, gt=0, le=30, description="Pause between two looks at the cluster.")
    retention_interval_s: float = Field(300, gt=0, description="Pause between two sweeps of the store.")
    webhook_attempts: int = Field(8, ge=1, le=20, description="Tries to deliver one webhook.")
    webhook_backoff_s: float = Field(
        5.0, gt=0, description="Pause after the first failed try; each further one is four times as long, up to 6 h."
    )
    webhook_timeout_s: float = Field(10.0, gt=0, le=60, description="Longest that one try may take.")
