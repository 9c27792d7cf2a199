"""An attempt as spans of its job's trace: how long the job waited, its claim, and the engine's stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gpu_worker.slot.clock import StageClock
from gpu_worker.slot.hold import Hold
from serinette import telemetry


@contextmanager
def traced(hold: Hold) -> Iterator[None]:
    """The attempt, below the submit that its job's record names."""
    entry, attempt = hold.entry, hold.attempt
    parent, pool, lane = entry.traceparent, entry.pool, entry.lane
    before = [each.ended_at for each in entry.attempts[:-1] if each.ended_at]
    waits_since = before[-1] if before else entry.created_at  # after the first attempt, since it was put back
    telemetry.record(
        "queue.wait", waits_since.timestamp(), hold.claim_began_s, parent, job=entry.id, pool=pool, lane=lane
    )
    about: dict[str, telemetry.Value] = {
        "job": entry.id,
        "attempt": attempt.number,
        "worker": attempt.worker,
        "pool": pool,
    }
    with telemetry.span("attempt", parent, hold.claim_began_s, about):
        telemetry.record("claim", hold.claim_began_s, time.time())
        yield


def trace_stages(clock: StageClock) -> None:
    """What the attempt and its engine did up to now, each stage a span."""
    for interval in clock.intervals(time.time()):
        telemetry.record(f"stage.{interval.stage}", interval.began_s, interval.ended_s)
