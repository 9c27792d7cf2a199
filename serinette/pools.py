"""Configuration of the worker pools: the chart's `pools`, known even when no worker runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator

from serinette.container import CONTAINERS_POOL
from serinette.settings import SharedSettings

_HUB_ID = re.compile(r"[\w.-]+/(?P<name>[\w.-]+)@[\w.-]+")


def _not_reserved(name: str) -> str:
    if name == CONTAINERS_POOL:
        raise ValueError(f"no pool may be called {name}: containers as jobs wait in its lanes; take another name")
    return name


PoolName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$"), AfterValidator(_not_reserved)]


class PoolFacts(BaseModel):
    """Configuration of one pool. Unknown fields, which a newer chart may have, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    name: PoolName
    model: str = Field("bundled", description="What its workers load: SERINETTE_MODEL.")
    model_name: str = Field("", description="Name that jobs ask for; the end of `model` when empty.")
    min_workers: int = Field(0, ge=0)
    max_workers: int = Field(1, ge=0)
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
