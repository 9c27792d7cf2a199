"""The wrapper in which this dialect answers everything, errors too."""

from __future__ import annotations

import time
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field

Data = TypeVar("Data")


def _timestamp_ms() -> int:
    return time.time_ns() // 1_000_000


class Envelope(BaseModel, Generic[Data]):
    """`code` is 200 when all is well; otherwise `error` says what is not, also where the HTTP status is 200."""

    data: Data | None = None
    code: int = 200
    error: str | None = None
    timestamp: int = Field(default_factory=_timestamp_ms, description="When it was answered, in Unix milliseconds.")
    extra: None = None


def wrapped(data: object = None, *, code: int = 200, error: str | None = None) -> dict[str, Any]:
    """An envelope as JSON takes it."""
    return Envelope[Any](data=data, code=code, error=error).model_dump(mode="json")
