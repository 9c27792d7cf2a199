"""Which lane a slot looks into first."""

from __future__ import annotations

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
