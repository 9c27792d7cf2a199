"""Errors of reached limits, with Retry-After estimated from the pool's measured pace. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from api.queue.explanations import Pool
from serinette.errors import GpuTimeSpent, LaneFull, LaneNotAllowed, SerinetteError, TooManyInFlight, TooManyQueued
from serinette.job import now
from serinette.jobs import Refusal
from serinette.names import Lane

# Retry-After without a measurement: before the first song, or while no worker runs.
UNKNOWN_S = 30.0
_SHORTEST_S = 1.0
_LONGEST_S = 3600.0


def error_of(refusal: Refusal, tenant: str, lane: Lane, pool: Pool) -> SerinetteError:
    """The error of a refused submit."""
    count, bound = f"{refusal.count:g}", refusal.bound
    mine_s = room_for_tenant_s(pool, int(refusal.count))
    match refusal.what:
        case "lane":
            return LaneNotAllowed(f"lane: tenant {tenant} may use {bound}, not {lane}", field="lane")
        case "gpu":
            message = f"tenant {tenant} has used {count} of its {bound} GPU-seconds of this UTC day; go on tomorrow"
            return GpuTimeSpent(message, retry_after_s=until_midnight_s(pool.at or now()))
        case "in_flight":
            message = f"tenant {tenant} has {count} unfinished jobs and may have {bound}; wait for one to end"
            return TooManyInFlight(message, retry_after_s=mine_s)
        case "queued":
            message = f"{count} jobs of tenant {tenant} wait and {bound} may; wait for one to begin"
            return TooManyQueued(message, retry_after_s=mine_s)
        case _:
            message = f"{count} jobs wait in lane {lane} of pool {pool.name}, and {bound} may; try again later"
            return LaneFull(message, retry_after_s=room_in_lane_s(pool, lane))


def interval_s(pool: Pool) -> float | None:
    """Mean seconds between two jobs' ends: the moving average of a job's run, divided by the ready slots."""
    if pool.pace_s is None or not pool.slots:
        return None
    return pool.pace_s / pool.slots


def room_in_lane_s(pool: Pool, lane: Lane) -> float:
    """Seconds until a job of a full lane starts: after all jobs in the lanes above it."""
    return _bounded(interval_s(pool), pool.waiting_above(lane) + 1)


def room_for_tenant_s(pool: Pool, mine: int) -> float:
    """Seconds until one of a tenant's `mine` jobs ends, if they are spread evenly among all jobs of the pool."""
    unfinished = sum(pool.waiting.values()) + pool.running
    return _bounded(interval_s(pool), max(1.0, unfinished / max(mine, 1)))


def until_midnight_s(at: datetime) -> float:
    """Seconds to the next UTC day."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return (midnight - at).total_seconds()


def _bounded(interval: float | None, jobs: float) -> float:
    return UNKNOWN_S if interval is None else min(max(interval * jobs, _SHORTEST_S), _LONGEST_S)
