"""What has not changed for a while, as far as we have watched it: the patience of reaper and sweep."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Thing = TypeVar("Thing", bound=Hashable)


class Vigil(Generic[Thing]):
    """Counts how long each thing has been seen unchanged.

    Time counts only between two looks, and no more than `step_s` of it: a process that was frozen, or a laptop that
    slept, has not watched. So nothing is ripe right after a start, and no two clocks need to agree.
    """

    def __init__(self, patience_s: float, step_s: float) -> None:
        self._patience_s = patience_s
        self._step_s = step_s
        self._looked_at_s: float | None = None
        self._seen: dict[Thing, tuple[object, float]] = {}

    def look(self, things: Mapping[Thing, object], at_s: float) -> list[Thing]:
        """Take in what is there now, with its state, at a monotonic time; answers what is ripe, longest seen first."""
        passed_s = 0.0 if self._looked_at_s is None else min(at_s - self._looked_at_s, self._step_s)
        self._looked_at_s = at_s
        before = self._seen
        self._seen = {
            thing: (state, before[thing][1] + passed_s if thing in before and before[thing][0] == state else 0.0)
            for thing, state in things.items()
        }
        ripe = [thing for thing, (_, unchanged_s) in self._seen.items() if unchanged_s >= self._patience_s]
        return sorted(ripe, key=lambda thing: -self._seen[thing][1])
