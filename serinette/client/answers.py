"""Answers of the gateway that the client alone has models of; the others are in serinette/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serinette.job import Job
from serinette.spec import RecordModel
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


class TenantUsage(RecordModel):
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
