"""What the gateway says, read. It may be newer than this client: what is not known here is kept, and not checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from serinette.job import Job
from serinette.usage import Day, Sums


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a job. The first has its status, the last is succeeded, failed or canceled."""

    id: str
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first; `next_cursor` leads to older ones."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class LaneState(_Answer):
    """One lane of a pool; `eta_s`: in how many seconds a song submitted now is likely ready, None when unknown."""

    lane: str
    waiting: int
    eta_s: float | None = None


class Worker(_Answer):
    """One worker."""

    name: str
    stage: str
    slots: int
    busy_slots: int
    model: str | None = None
    device: str | None = None
    message: str = ""
    started_at: datetime | None = None


class WorkerPool(_Answer):
    """One pool as an operator sees it. What only a cluster can report is None outside of one."""

    name: str
    model: str | None = None
    min_workers: int | None = None
    max_workers: int | None = None
    pods: int | None = None
    waiting: int = 0
    brake: tuple[str, ...] = ()
    waiting_for: str | None = None
    workers: tuple[Worker, ...] = ()


class Workers(_Answer):
    """All pools that are known, with workers or without."""

    pools: tuple[WorkerPool, ...]


class Pool(_Answer):
    """One pool: workers that hold the same model."""

    name: str
    lanes: tuple[LaneState, ...]
    running: int
    workers: tuple[Worker, ...] = ()


class QueueState(_Answer):
    """All pools."""

    pools: tuple[Pool, ...]


class Model(_Answer):
    """A model that jobs may ask for. Without revision and tasks while none of its pool's workers is up."""

    name: str
    pool: str
    default: bool
    revision: str | None
    tasks: tuple[str, ...]


class TenantUsage(_Answer):
    """What the key's tenant used, and may: `limits` by name, None being without bound."""

    tenant: str
    days: tuple[Day, ...]
    total: Sums
    limits: dict[str, Any]


class EventLines:
    """Events from the lines of a stream (HTML standard, 9.2.6), whose data hold all there is to know."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> Iterator[Event]:
        """The event that this line ends, if it ends one."""
        if line.startswith("data:"):
            self._data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and self._data:
            event = json.loads("\n".join(self._data))
            self._data = []
            yield Event(event["id"], event["type"], event["data"])
