"""How many lines of which batch may go to the queue, and what a batch needs next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from serinette.batch import PART_LINES, BatchHeader, BatchStatus
from serinette.credentials import Limits
from serinette.pools import PoolFacts, of_name

# KEDA reads a lane's length every few seconds. With so many jobs waiting for each that all workers could generate at
# once, it still sees a backlog worth all of them when a round of the controller is late.
FACTOR = 4
# Lines that are submitted in one round trip, between two moves of the cursor: so many may be submitted again after a
# death. Batches that share the lanes take shorter turns, so that none uses up the room.
_TURN, _SHORT_TURN = 200, 25
# Lines behind a cursor of which another replica may have submitted, or may yet submit, some.
MOST_UNDECIDED = _TURN
# Parts that may be open beyond what a full lane needs: so far a straggler lets its batch run ahead.
_OPEN = 64


def backlog(pools: Sequence[PoolFacts], pool: str, least: int) -> int:
    """Jobs that batches keep waiting in the lowest lane of a pool, at least; its workers count at their most."""
    facts = of_name(pools, pool)
    if facts is None:
        return least
    return max(least, FACTOR * facts.max_workers * max(facts.max_batch, facts.slots))


@dataclass
class LaneRoom:
    """Room for released lines in each pool, as it is used up within one round."""

    pools: Sequence[PoolFacts]
    least: int
    waiting: dict[str, int] = field(default_factory=dict)

    def free(self, pool: str) -> int:
        """Lines that may still go to a pool whose `waiting` is known."""
        return max(0, backlog(self.pools, pool, self.least) - self.waiting[pool])


def turn_lines(batches: int) -> int:
    """Lines of one turn while so many batches take turns."""
    return max(_SHORT_TURN, _TURN // batches)


class Action(StrEnum):
    """What the cursor of a batch does."""

    RELEASE = "release"  # its lines become jobs
    CANCEL = "cancel"  # its lines end without any
    REST = "rest"  # nothing: paused, through, or too far ahead of its slowest lines


def next_action(status: BatchStatus, left: int, open_parts: int, backlog: int) -> Action:
    """What to do with the `left` lines behind a batch's cursor."""
    if not left:
        return Action.REST
    if status is BatchStatus.CANCELING:
        return Action.CANCEL
    if status is not BatchStatus.IN_PROGRESS or open_parts > _OPEN + backlog // PART_LINES:
        return Action.REST
    return Action.RELEASE


def ended_parts(header: BatchHeader, released: int, parts: Iterable[int], live: Iterable[int]) -> list[int]:
    """Of the open parts those that the cursor is past and of whose lines none is `live`."""
    unended = {line // header.part_lines for line in live}
    return [part for part in parts if part not in unended and header.span(part).stop <= released]


def next_lines(live: Iterable[int], last: int, most: int) -> list[int]:
    """The lines to check behind the `last` that was checked; behind all of them, from the first."""
    lines = sorted(live)
    return [line for line in lines if line > last][:most] or lines[:most]


def share(limits: Limits) -> Limits:
    """What of a tenant's limits its batches may use: half of its jobs, so that it can still have others."""
    most, queued = limits.jobs_in_flight, limits.queued_jobs
    return limits.model_copy(
        update={
            "jobs_in_flight": None if most is None else min(most, max(1, most // 2)),
            "queued_jobs": None if queued is None else min(queued, max(1, queued // 2)),
        }
    )


_WHY = {
    "lane": "the tenant may not use the lane of batches any more",
    "gpu": "the tenant has used its GPU-seconds of this UTC day; it goes on tomorrow",
    "in_flight": "the tenant's batches have half of its unfinished jobs; more follow as they end",
    "queued": "the tenant's batches have half of its waiting jobs; more follow as they begin",
}


def why(refusal: str) -> str:
    """A refusal of a submit, for the batch's owner."""
    return _WHY.get(refusal, "the lane is full")
