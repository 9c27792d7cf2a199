"""Answers of the gateway that the client alone has models of; the others are in serinette/."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serinette.spec import RecordModel
from serinette.usage import Day, Sums
from serinette.views import JobEvent


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

    def feed(self, line: str) -> Iterator[JobEvent]:
        """The event that this line ends, if it ends one."""
        if line.startswith("data:"):
            self._data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and self._data:
            event = JobEvent.model_validate_json("\n".join(self._data))
            self._data = []
            yield event
