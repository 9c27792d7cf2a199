"""Which lane a slot looks into first."""

from __future__ import annotations

from serinette.names import Lane

# Every so often the lowest lane goes first, so that a busy high lane slows the others down and never stops them.
LOWEST_FIRST_EVERY = 10


def lane_order(claims: int) -> tuple[Lane, ...]:
    """Lanes in the order in which the next claim tries them, after `claims` claims."""
    highest_first = tuple(Lane)
    return highest_first[::-1] if claims % LOWEST_FIRST_EVERY == LOWEST_FIRST_EVERY - 1 else highest_first
