"""In which order a slot serves its pool's lanes, and its claim of the next job."""

from __future__ import annotations

import time
from dataclasses import dataclass
from uuid import uuid4

from gpu_worker.slot.drain import Drain
from gpu_worker.slot.held_job import HeldJob
from serinette.jobs import Claimed, Jobs, Lease, calls
from serinette.names import Lane

# Every tenth claim goes to a lower lane that has work, so that a busy one above slows it down and never stops it.
LOWER_LANE_EVERY = 10
# Of claims: in one turn of ten a lower lane is `low`, in the next `normal`, where both have work.
CYCLE = 2 * LOWER_LANE_EVERY
_EXCEPTIONS = {
    LOWER_LANE_EVERY - 1: (Lane.LOW, Lane.NORMAL, Lane.HIGH),
    CYCLE - 1: (Lane.NORMAL, Lane.LOW, Lane.HIGH),
    # While `high` is empty, the two above give `normal` one of its own: this one gives `low` its tenth of it.
    CYCLE - 2: (Lane.HIGH, Lane.LOW, Lane.NORMAL),
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
