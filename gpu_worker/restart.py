"""When a child that died is started again: a pure plan over what became of it so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0


class Step(StrEnum):
    """What to do with one child now."""

    NOTHING = "nothing"
    START = "start"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Life:
    """One child's lives so far. Times are of the monotonic clock.

    `deaths` counts those in a row before it got well: an engine that sang and was killed for a song that hung is back
    at once, one that cannot load its model comes back ever more slowly.
    """

    deaths: int = 0
    well: bool = False
    started_at_s: float | None = None
    died_at_s: float | None = None

    def started(self, at_s: float) -> Life:
        """It runs."""
        return replace(self, started_at_s=at_s, died_at_s=None, well=False)

    def got_well(self) -> Life:
        """It does what it is for."""
        return replace(self, well=True, deaths=0)

    def died(self, at_s: float) -> Life:
        """It ended unasked."""
        return replace(self, deaths=0 if self.well else self.deaths + 1, died_at_s=at_s, started_at_s=None, well=False)

    @property
    def pause_s(self) -> float:
        """Seconds between this death and the next start: none after a life that went well, then doubling."""
        if self.deaths == 0:
            return 0.0
        doublings = min(self.deaths - 1, 10)
        return float(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**doublings))


def next_step(life: Life, at_s: float, start_timeout_s: float) -> Step:
    """What to do with a child that is to run and to be well within `start_timeout_s` of its start."""
    if life.started_at_s is None:
        due_at_s = 0.0 if life.died_at_s is None else life.died_at_s + life.pause_s
        return Step.START if at_s >= due_at_s else Step.NOTHING
    late = not life.well and at_s > life.started_at_s + start_timeout_s
    return Step.KILL if late else Step.NOTHING
