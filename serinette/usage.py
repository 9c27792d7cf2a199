"""Usage of tenants per UTC day. Written by the transition that ends a job, once (serinette/jobs/)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from pydantic import Field, computed_field

from serinette.spec import RecordModel

_EPOCH = date(1970, 1, 1)
# The same as in transitions/prelude.lua.
DAYS_KEPT = 400


class Sums(RecordModel):
    """Usage summed over ended jobs."""

    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    gpu_s: float = Field(0.0, description="Seconds in the engine.")
    queue_s: float = Field(0.0, description="Seconds that jobs waited for their last attempt.")
    size_bytes: int = Field(0, description="Of the songs.")

    @computed_field(description="All that ended.")  # type: ignore[prop-decorator]  # pydantic's documented order
    @property
    def jobs(self) -> int:
        """All that ended."""
        return self.succeeded + self.failed + self.canceled

    def plus(self, other: Sums) -> Sums:
        """The sum of both."""
        names = Sums.model_fields
        return Sums(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Day(Sums):
    """Usage of one tenant on one UTC day."""

    day: date


def day_number(day: date) -> int:
    """Days since 1970-01-01, as in the key."""
    return (day - _EPOCH).days


def day_of(day: date, raw: Mapping[Any, Any]) -> Day:
    """Parse the hash as `HGETALL` returns it, as bytes or text; a day without jobs is all zeros."""
    return Day(day=day, **{_text(name): _text(value) for name, value in raw.items()})


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
