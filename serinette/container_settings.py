"""Settings of containers as jobs, shared by gateway and controller."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from serinette.container import AllowedImage, Ceilings, Image
from serinette.credentials import TenantName
from serinette.names import Lane
from serinette.settings import SharedSettings
from serinette.spec import PublishedName

_NAME = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
ObjectName = Annotated[str, StringConstraints(pattern=rf"^{_NAME}$")]
# As in Kubernetes: a key with an optional domain, a value of at most 63 characters.
LabelKey = Annotated[str, StringConstraints(pattern=rf"^({_NAME}/)?[A-Za-z0-9]([A-Za-z0-9._-]{{0,61}}[A-Za-z0-9])?$")]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$")]


class SecretKey(BaseModel):
    """One key of a Kubernetes Secret in the containers' namespace."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: ObjectName
    key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,253}$")]


class Machines(BaseModel):
    """Nodes that containers of a pool run on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_selector: dict[LabelKey, LabelValue] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    gpu_resource: str = Field("nvidia.com/gpu", pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$")
    runtime_class: ObjectName | None = None


class ContainerSettings(SharedSettings):
    """Read from the environment, once, in `main()`."""

    containers: bool = Field(False, description="Take containers as jobs (POST /v1/containers). Needs a cluster.")
    containers_images: tuple[AllowedImage, ...] = Field(
        (),
        description="Images that may run (JSON): a registry, `registry/path/` for all below it, a repository, or one "
        "with its tag or digest. None by default.",
    )
    containers_writable_images: tuple[AllowedImage, ...] = Field(
        (), description="Those of them that may request a writable root file system (JSON)."
    )
    containers_secrets: dict[PublishedName, SecretKey] = Field(
        {}, description='What containers may name under `secrets` (JSON): `{"hub": {"secret": "hub", "key": "token"}}`.'
    )
    containers_machines: dict[PublishedName, Machines] = Field(
        {}, description="What containers may name as their `pool` (JSON); `default` is where the others run."
    )
    containers_ceilings: Ceilings = Field(Ceilings(), description="Most resources of one container (JSON).")
    containers_tenants: dict[TenantName, Ceilings] = Field({}, description="The same for single tenants (JSON).")
    containers_max_gpus: int = Field(0, ge=0, description="GPUs that all containers together may hold at once.")
    containers_max_jobs: int = Field(50, ge=1, description="Containers that may run at once.")
    containers_namespace: ObjectName | None = Field(None, description="Kubernetes namespace that containers run in.")
    containers_instance: LabelValue = Field(
        "serinette",
        min_length=1,
        description="Label `app.kubernetes.io/instance` of its Jobs: one for each deployment in a namespace.",
    )
    containers_service_account: ObjectName | None = Field(
        None,
        description="Service account of their pods, in that namespace; its token is not mounted. Its image pull "
        "secrets are used, and Jobs are deleted with it. None: the namespace's `default`, and Jobs stay.",
    )
    containers_steps_image: Image | None = Field(
        None, description="Image of the steps that fetch inputs and upload outputs: the gateway's."
    )
    containers_store_endpoint: str | None = Field(
        None, description="Endpoint of the store as the containers' pods reach it. None: `store_endpoint`."
    )
    containers_labels: dict[LabelKey, LabelValue] = Field(
        {}, description="Labels of every container's Job and pod (JSON), for example Kueue's queue."
    )
    containers_priority_classes: dict[Lane, ObjectName] = Field({}, description="Priority class of each lane (JSON).")
    containers_start_s: int = Field(900, ge=30, description="How long a pod may wait for a node and its image.")
    containers_grace_s: int = Field(
        120, ge=10, le=3600, description="Time for a container to end and its outputs to be uploaded."
    )
    containers_log_bytes: int = Field(
        4 * 1024 * 1024,
        ge=1024,
        le=64 * 1024 * 1024,
        description="Longest log kept; in Redis while the container runs.",
    )
    containers_output_files: int = Field(64, ge=1, le=150, description="Most files one container may leave.")
    containers_output_bytes: int = Field(10 * 1024**3, ge=1024, description="Most bytes one container may leave.")

    @model_validator(mode="after")
    def _complete_if_enabled(self) -> Self:
        wanted = {
            "containers_namespace": self.containers_namespace,
            "containers_steps_image": self.containers_steps_image,
        }
        missing = [name for name, value in wanted.items() if value is None]
        if self.containers and missing:
            raise ValueError(f"SERINETTE_{missing[0].upper()}: must be set where SERINETTE_CONTAINERS is true")
        return self

    def ceilings_of(self, tenant: str) -> Ceilings:
        """Most resources of one container of a tenant."""
        return self.containers_tenants.get(tenant, self.containers_ceilings)
