"""Which lane a slot looks into first, and the claim of the next job."""

from __future__ import annotations

import time
from dataclasses import dataclass
from uuid import uuid4

from gpu_worker.slot.drain import Drain
from gpu_worker.slot.held_job import HeldJob
from serinette.jobs import Claimed, Jobs, Lease, calls
from serinette.names import Lane

CYCLE = 20
# Every tenth claim goes to a lower lane that has work, so that a busy one above slows it down and never stops it; where
# both have work, to each in turn. The entry with `high` first gives `low` its tenth of `normal`, while `high` is empty.
_EXCEPTIONS = {
    9: (Lane.LOW, Lane.NORMAL, Lane.HIGH),
    19: (Lane.NORMAL, Lane.LOW, Lane.HIGH),
    18: (Lane.HIGH, Lane.LOW, Lane.NORMAL),
}


def lane_order(claims: int) -> tuple[Lane, ...]:
    """Lanes in the order in which the next claim tries them, after `claims` claims."""
    return _EXCEPTIONS.get(claims % CYCLE, tuple(Lane))


@dataclass(slots=True)
class Claimer:
    """The claims of one slot, so many until now."""

    jobs: Jobs
    pool: str
    lease: Lease
    drain: Drain
    beat_every_s: float
    claims: int = 0

    def claim(self, *, woken: bool = False) -> HeldJob | None:
        """Claim the next job, if there is one. `woken`: by a token."""
        attempt_id, lanes, began_s = uuid4().hex, lane_order(self.claims), time.time()
        claimed: Claimed | bool = True
        while claimed is True and not self.drain.requested:  # there may be more behind what had to be passed over
            claimed = self.jobs(calls.claim(attempt_id, self.lease, self.pool, lanes, woken=woken))
        if isinstance(claimed, bool):
            return None
        self.claims += 1
        held = HeldJob(claimed.entry, self.lease, self.jobs, self.drain, self.beat_every_s)
        held.claim_began_s = began_s
        return held
