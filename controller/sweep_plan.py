"""What the sweeper is to do about each job: decisions over records, without I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from serinette.container import CONTAINERS_POOL
from serinette.errors import PoolRemoved
from serinette.job import Attempt, JobError, JobStatus, Record
from serinette.jobs import Entry, Outcome
from serinette.jobs.finishing import record_of
from serinette.names import Lane
from serinette.pools import PoolFacts, of_name, serving


class Action(StrEnum):
    """What the sweeper did about a job, in the words of its metric and of the log."""

    FINISH = "finish"  # as its job.json says
    CANCEL = "cancel"  # its attempt was lost, and its owner wants it to end
    RETRY = "retry"  # its attempt was lost: to the front of its lane
    FAIL = "fail"  # its last attempt was lost
    EXPIRE = "expire"  # no worker began it in time
    MOVE = "move"  # its pool was removed: to the lane of another that holds its model
    STRAND = "strand"  # its pool was removed and no other holds its model: failed
    REQUEUE = "requeue"  # it waited and was not in RQ's list: it is there again
    RECORD = "record"  # it had ended, and the store says so now
    SHRINK = "shrink"  # it ended a while ago: most of its record goes
    LEAVE = "leave"  # it cannot be read or changed: it is left as it is


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of one job. `outcome`: how it ends; None: it goes on in `pool`, or in its own lane's front.

    `record` is what `job.json` shall say of the end, unless one lies there; None where the spec cannot be read.
    """

    action: Action
    entry: Entry
    attempt: Attempt | None = None
    outcome: Outcome | None = None
    record: Record | None = None
    pool: str | None = None


def plan_lost(entry: Entry | None, attempt_id: str) -> Plan | None:
    """Of a job whose attempt let its lease run out; None where that attempt is not in charge any more."""
    if entry is None or entry.status is not JobStatus.RUNNING or entry.owner != attempt_id:
        return None
    attempt = entry.attempts[-1]
    if entry.cancel_requested:
        return _end(Action.CANCEL, entry, attempt, Outcome(JobStatus.CANCELED))
    if entry.retries_left > 0:
        return Plan(Action.RETRY, entry, attempt)
    return _end(Action.FAIL, entry, attempt, Outcome(JobStatus.FAILED, entry.lost(last=True)))


def plan_due(entry: Entry | None, at: datetime) -> Plan | None:
    """Of a job whose start deadline is in the index; None where it does not count any more."""
    if entry is None or entry.status is not JobStatus.QUEUED or entry.attempts:
        return None
    if entry.start_by is None or entry.start_by > at:
        return None
    return Plan(Action.EXPIRE, entry, outcome=Outcome(JobStatus.FAILED, entry.expiry()))


def shrinks(entry: Entry) -> bool:
    """Whether an ended job may be forgotten but for a line; the transition checks its webhook itself."""
    return entry.status.ended and "recorded" in entry.fields


def _end(action: Action, entry: Entry, attempt: Attempt | None, outcome: Outcome) -> Plan:
    try:
        record = record_of(entry, attempt, outcome)
    except Exception:  # a spec that this version cannot read: the job ends all the same, by its record in Redis alone
        record = None
    return Plan(action, entry, attempt, outcome, record)


class RemovedPools:
    """Which pools were removed, and where their jobs go. Without a chart no pool is known, and none is removed.

    While a new chart is rolled out, gateways may know a pool that this process does not: only a pool that stays unknown
    for `patience_s`, with no worker up, is taken for removed.
    """

    def __init__(self, pools: Sequence[PoolFacts], default: str, patience_s: float) -> None:
        self._pools = pools
        self._default = default
        self._patience_s = patience_s
        self._since_s: dict[str, float] = {}

    def foreign(self, pool: str) -> bool:
        """Whether it is none of the pools that there are."""
        return bool(self._pools) and pool != CONTAINERS_POOL and of_name(self._pools, pool) is None

    def lanes(self, lanes: Iterable[tuple[str, Lane]], up: Iterable[str], at_s: float) -> list[tuple[str, Lane]]:
        """Those of the lanes whose pool is removed, at a monotonic time. `up`: pools that have workers."""
        lanes, up = list(lanes), set(up)
        foreign = {pool for pool, _ in lanes if self.foreign(pool)} - up
        self._since_s = {pool: self._since_s.get(pool, at_s) for pool in foreign}
        return [lane for lane in lanes if at_s - self._since_s.get(lane[0], math.inf) >= self._patience_s]

    def plan(self, entry: Entry | None) -> Plan | None:
        """Of a job that waits in a removed pool."""
        if entry is None or entry.status is not JobStatus.QUEUED or not self.foreign(entry.pool):
            return None
        model = entry.wire.get("model")
        if model is None:
            home = self._default if of_name(self._pools, self._default) else None
        else:
            home = serving(self._pools, model, self._default)
        if home is not None:
            return Plan(Action.MOVE, entry, pool=home)
        last = entry.attempts[-1] if entry.attempts else None
        asked = f"none that is left holds model {model}" if model else "there is no default pool to take its place"
        published = ", ".join(sorted({each.published for each in self._pools}))
        message = (
            f"pool {entry.pool} was removed, and {asked}; published here are {published}: submit it again with one"
        )
        error = JobError(code=PoolRemoved.code, message=message)
        return _end(Action.STRAND, entry, last, Outcome(JobStatus.FAILED, error))
