"""The task that RQ finds by name in every job (serinette.names.SING_TASK)."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from gpu_worker.slot.song import Performance

# Set by the slot for the one job that it holds; RQ passes nothing but the job's own arguments.
performing: ContextVar[Performance] = ContextVar("performing")


def sing(job_id: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Sing one job's spec; its Result as JSON."""
    return performing.get().sing(job_id, spec).model_dump(mode="json")
