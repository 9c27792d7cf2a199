"""In which order a slot serves its pool's lanes."""

from __future__ import annotations

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
