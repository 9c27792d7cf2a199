"""Configuration of the worker pools: the chart's `pools`, known even when no worker runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, field_validator

from serinette.container import CONTAINERS_POOL
from serinette.settings import SharedSettings
from serinette.spec import RecordModel

# KEDA's annotations (apis/keda/v1alpha1/scaledobject_types.go), and what Go's strconv.ParseBool takes for false.
_PAUSED, _FALSE = "autoscaling.keda.sh/paused", {"0", "f", "F", "false", "False", "FALSE"}

_HUB_ID = re.compile(r"[\w.-]+/(?P<name>[\w.-]+)@[\w.-]+")


def _not_reserved(name: str) -> str:
    if name == CONTAINERS_POOL:
        raise ValueError(f"no pool may be called {name}: containers as jobs wait in its lanes; take another name")
    return name


PoolName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$"), AfterValidator(_not_reserved)]


class PoolFacts(RecordModel):
    """Configuration of one pool. Unknown fields, which a newer chart may have, are ignored."""

    name: PoolName
    model: str = Field("bundled", description="What its workers load: SERINETTE_MODEL.")
    model_name: str = Field("", description="Name that jobs ask for; the end of `model` when empty.")
    min_workers: int = Field(0, ge=0)
    max_workers: int = Field(1, ge=0)
    jobs_per_worker: int = Field(4, ge=1, description="Waiting jobs for which KEDA adds a worker.")
    slots: int = Field(2, ge=1, description="Jobs that one worker holds at a time.")
    max_batch: int = Field(1, ge=1, description="Songs that one worker generates together.")
    longest_s: int | None = Field(
        None,
        ge=0,
        description="Longest job that a draining worker can finish; null: its jobs are returned to the queue.",
    )
    gpu_resource: str = Field("", description="Extended resource of which each worker takes one; empty: none, a CPU.")

    @property
    def published(self) -> str:
        """The name by which jobs select its model."""
        return self.model_name or published_name(self.model)


class PoolSettings(SharedSettings):
    """The pools of this deployment."""

    pools: tuple[PoolFacts, ...] = Field(
        (),
        description="The pools, as the chart writes them (JSON): name, model, model_name, min_workers, max_workers, "
        "slots, max_batch, longest_s, gpu_resource. Jobs are then routed by model even while no worker runs. Empty: "
        "pools and models are known only from running workers.",
    )

    @field_validator("pools")
    @classmethod
    def _each_once(cls, pools: tuple[PoolFacts, ...]) -> tuple[PoolFacts, ...]:
        names = [pool.name for pool in pools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: listed twice; give each pool a name of its own")
        return pools


def published_name(model: str) -> str:
    """The default name under which a worker publishes the checkpoint `model`: its last path segment."""
    if hub := _HUB_ID.fullmatch(model):
        return hub["name"]
    return PurePosixPath(model).name


def of_name(pools: Sequence[PoolFacts], name: str) -> PoolFacts | None:
    """The pool of this name, if it is configured."""
    return next((pool for pool in pools if pool.name == name), None)


def serving(pools: Sequence[PoolFacts], model: str, default: str) -> str | None:
    """The pool that serves `model`: the default pool if it does, else the first."""
    holding = [pool.name for pool in pools if pool.published == model]
    return default if default in holding else next(iter(holding), None)


def pauses(annotations: Mapping[str, str] | None) -> list[str]:
    """The annotations by which a ScaledObject is paused, as KEDA reads them: any number of replicas pauses, and any
    value of a switch that does not say false.
    """
    given = {name: value for name, value in (annotations or {}).items() if name.startswith(_PAUSED)}
    return sorted(name for name, value in given.items() if name.endswith("-replicas") or value not in _FALSE)
