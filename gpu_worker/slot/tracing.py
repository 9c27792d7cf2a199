"""An attempt as spans of its job's trace: how long the job waited, its claim, and the engine's stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gpu_worker.slot.clock import StageClock
from gpu_worker.slot.hold import Hold
from serinette import traces


@contextmanager
def traced(hold: Hold) -> Iterator[None]:
    """The attempt, below the submit that its job's entry names."""
    job, parent, attempt = hold.job, hold.job.meta.get("traceparent"), hold.attempt
    pool, _, lane = job.origin.rpartition(".")
    waits_since = job.enqueued_at or job.created_at  # for an attempt after the first, since it was put back
    traces.record("queue.wait", waits_since.timestamp(), hold.claim_began_s, parent, job=job.id, pool=pool, lane=lane)
    told: dict[str, traces.Value] = {"job": job.id, "attempt": attempt.number, "worker": attempt.worker, "pool": pool}
    with traces.span("attempt", parent, hold.claim_began_s, told):
        traces.record("claim", hold.claim_began_s, time.time())
        yield


def trace_stages(clock: StageClock) -> None:
    """What the attempt and its engine did up to now, each stage a span."""
    for interval in clock.intervals(time.time()):
        traces.record(f"stage.{interval.stage}", interval.began_s, interval.ended_s)
