"""What an unfinished job waits for, in words, and its ETA. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from serinette import brake
from serinette.checkpoints import Fetched
from serinette.container import CONTAINERS_POOL
from serinette.job import Job, JobStatus, Stage, WaitingCode
from serinette.names import Lane
from serinette.pools import PoolFacts
from serinette.presence import TROUBLES, Holdup, Presence, WorkerStage, trouble_of

# What is waited for: a code, and words.
Waiting = tuple[WaitingCode, str]

# Least fraction of the work from which the rest can be extrapolated.
_LEAST_FRACTION = 0.1


@dataclass(frozen=True, slots=True)
class Pool:
    """Status of one pool. `ended` counts jobs that ended since Redis began, by outcome and error code;
    `facts` is the pool's published configuration, `holdup` the controller's report of its pods, `queue_full` whether
    Redis cannot write to its disk (asked while it knows no worker: none could report itself), `at` when this was read,
    by Redis's clock as all times of jobs and workers are.
    """

    name: str
    waiting: Mapping[Lane, int]
    running: int = 0
    ended: Mapping[tuple[str, str], int] = field(default_factory=dict)
    workers: tuple[Presence, ...] = ()
    pace_s: float | None = None
    cold_start_s: float | None = None
    brake: tuple[str, ...] = ()
    queue_full: bool = False
    holdup: Holdup | None = None
    facts: PoolFacts | None = None
    at: datetime | None = None

    @property
    def succeeded(self) -> int:
        """Jobs that succeeded since Redis began."""
        return sum(jobs for (outcome, _), jobs in self.ended.items() if outcome == JobStatus.SUCCEEDED)

    @property
    def unsuccessful(self) -> int:
        """Jobs that failed or were canceled since Redis began."""
        return sum(self.ended.values()) - self.succeeded

    @property
    def active(self) -> tuple[Presence, ...]:
        """Workers that will take jobs, now or soon."""
        return tuple(worker for worker in self.workers if worker.stage is not WorkerStage.DRAINING)

    @property
    def ready(self) -> tuple[Presence, ...]:
        """Workers that take jobs now."""
        return tuple(worker for worker in self.workers if worker.stage is WorkerStage.READY)

    @property
    def slots(self) -> int:
        """Jobs that the ready workers can run at once."""
        return sum(worker.slots for worker in self.ready)

    @property
    def free_slots(self) -> int:
        """Slots of ready workers that run nothing."""
        return sum(max(worker.slots - worker.busy_slots, 0) for worker in self.ready)

    def waiting_above(self, lane: Lane) -> int:
        """Jobs in the lanes that are served before this one."""
        lanes = list(Lane)
        return sum(self.waiting.get(higher, 0) for higher in lanes[: lanes.index(lane)])


def waiting_for(job: Job, ahead: int | None, pool: Pool, at: datetime | None = None) -> Waiting | None:
    """What an unfinished job waits for; None while its song is generated. `ahead`: jobs before it in its
    lane, None when it is not queued.
    """
    if job.status is JobStatus.RUNNING:
        return _running_waits_for(job, pool, at)
    if job.status is not JobStatus.QUEUED:
        return None
    if pool.name == CONTAINERS_POOL:
        room = WaitingCode.ROOM, "room: containers begin in their order, as GPUs for them come free"
        return _suspended(pool) or _lane_ahead(job, ahead, pool) or room
    return not_taken(pool) or _lane_ahead(job, ahead, pool) or _worker_waits_for(job, ahead, pool, at)


def not_taken(pool: Pool) -> Waiting | None:
    """What keeps all of a pool's jobs from being taken, whatever their order; None when nothing does."""
    return _suspended(pool) or (trouble_of(pool.ready or pool.active) if pool.active else no_worker(pool))


def _suspended(pool: Pool) -> Waiting | None:
    words = "an operator, who has suspended the queue: no job begins until `rq resume`"
    suspended = any(reason.startswith(f"{brake.Cause.SUSPENDED}: ") for reason in pool.brake)
    return (WaitingCode.SUSPENDED, words) if suspended else None


def no_worker(pool: Pool) -> Waiting:
    """Why a pool has no worker: the queue's server, the brake, what ended its last one, the cluster, or scaling from
    zero.
    """
    none = f"a worker: none is up in pool {pool.name}"
    if pool.queue_full:
        return WaitingCode.QUEUE, TROUBLES[WaitingCode.QUEUE]
    if ended := trouble_of([worker for worker in pool.workers if worker.trouble and not worker.slots]):
        return ended
    if pool.brake:
        return WaitingCode.BRAKE, f"{none}, and no more are started: {brake.describe(pool.brake)}"
    if pool.holdup and pool.holdup.words:
        return WaitingCode.POD, f"{none}; {pool.holdup.words}"
    if pool.facts and pool.facts.min_workers == 0 and not (pool.holdup and pool.holdup.pods):
        usually = f"; from start to model it takes about {pool.cold_start_s:.0f} s" if pool.cold_start_s else ""
        return WaitingCode.FROM_ZERO, f"{none}, which scales from zero{usually}"
    return WaitingCode.WORKER, none


def coming(pool: Pool, at: datetime | None) -> Waiting:
    """How far the oldest starting worker is, by the pool's average cold start."""
    if trouble := trouble_of(pool.active):
        return trouble
    words = "the model, which is loading"
    fetched = max((Fetched(worker.fetched_bytes, worker.checkpoint_bytes) for worker in pool.active), default=None)
    if fetched and fetched.done_bytes:
        words = f"{words} ({fetched})"
    if at is None or not pool.cold_start_s:
        return WaitingCode.MODEL, words
    loading = [worker for worker in pool.active if not worker.trouble]
    since_s = max((at - (worker.loading_since or worker.started_at)).total_seconds() for worker in loading)
    if since_s > pool.cold_start_s:
        passed = f"for {since_s:.0f} s so far, where about {pool.cold_start_s:.0f} s are usual"
    else:
        passed = f"{100 * since_s / pool.cold_start_s:.0f} % of the usual {pool.cold_start_s:.0f} s have passed"
    return WaitingCode.MODEL, f"{words}: {passed}"


def _running_waits_for(job: Job, pool: Pool, at: datetime | None) -> Waiting | None:
    if job.cancel_requested:
        return WaitingCode.CANCEL, "its worker to stop, which takes up to one step"
    if job.progress is None or job.progress.stage is not Stage.WAITING_FOR_ENGINE:
        return None
    if pool.active and not pool.ready:
        return coming(pool, at)
    return WaitingCode.ENGINE, "the engine, which generates for another job"


def _lane_ahead(job: Job, ahead: int | None, pool: Pool) -> Waiting | None:
    return (WaitingCode.AHEAD, f"{_jobs(ahead)} ahead of it in lane {job.lane}{no_more(pool)}") if ahead else None


def no_more(pool: Pool) -> str:
    """Why no worker comes to help those that are up; empty when one may."""
    if not pool.ready:
        return ""
    if pool.brake:
        return f"; no more workers are started: {brake.describe(pool.brake)}"
    return f"; no more workers yet: {pool.holdup.words}" if pool.holdup and pool.holdup.words else ""


def _worker_waits_for(job: Job, ahead: int | None, pool: Pool, at: datetime | None) -> Waiting:
    if not pool.ready:
        return coming(pool, at)
    above = 0 if ahead is None else pool.waiting_above(job.lane)
    if above:
        return WaitingCode.LANES, f"{_jobs(above)} in the lanes above {job.lane}{no_more(pool)}"
    if ahead is None or pool.free_slots:
        return WaitingCode.TAKEN, "the worker that is taking it"
    return WaitingCode.SLOT, f"a free worker: it is next in its lane{no_more(pool)}"


def eta_s(job: Job, ahead: int | None, pool: Pool, at: datetime) -> float | None:
    """Seconds until the song is likely ready; None when unknown. A running job is extrapolated from its progress."""
    if job.status is JobStatus.RUNNING:
        return _remaining_s(job, pool, at)
    if job.status is not JobStatus.QUEUED:
        return None
    return expected_s(job.lane, ahead or 0, pool)


def expected_s(lane: Lane, ahead: int, pool: Pool) -> float | None:
    """Seconds until a job with `ahead` others before it in its lane is likely ready; None without workers or pace.

    It waits for as many rounds as the slots need for all jobs before it, and half a round more while all are busy.
    """
    if pool.pace_s is None or not pool.slots:
        return None
    rounds = math.ceil((pool.waiting_above(lane) + ahead + 1) / pool.slots) + (0 if pool.free_slots else 0.5)
    return round(rounds * pool.pace_s, 1)


def _remaining_s(job: Job, pool: Pool, at: datetime) -> float | None:
    """None, too, once the job has taken longer than was expected: nothing says how much longer."""
    progress, began = job.progress, job.started_at or at
    if progress is None or progress.fraction < _LEAST_FRACTION:
        left_s = None if pool.pace_s is None else pool.pace_s - max((at - began).total_seconds(), 0.0)
    else:
        # By what it took until its last step, without its waits for the engine; while that step stands, less is left.
        worked_s = max((progress.at - began).total_seconds(), 0.0) if progress.engine_s is None else progress.engine_s
        rest_s = worked_s * (1 - progress.fraction) / progress.fraction
        left_s = rest_s - max((at - progress.at).total_seconds(), 0.0)
    return None if left_s is None or left_s <= 0 else round(left_s, 1)


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
