"""Moves on the jobs that no slot or client will: one loop in every replica, whether it leads or not.

Every change is one transition, so replicas may do the same at once. What needs the store asks it with patience; a store
that is away, or one job that cannot be read, holds up nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import RedisError

from controller.metrics import ControllerMetrics
from controller.settings import ControllerSettings
from controller.sweep_plan import Action, Plan, RemovedPools, plan_due, plan_lost, shrinks
from controller.unrecorded import StoreCalls, UnrecordedEnds
from serinette import logs
from serinette.errors import StoreUnavailable
from serinette.job import JobStatus
from serinette.jobs import AttemptState, Call, Entry, Jobs, calls
from serinette.jobs.finishing import find_end, finish_as, put_record
from serinette.jobs.registries import ListPruner, known_lanes, trim_registries
from serinette.jobs.script import is_of_one_job
from serinette.names import queue_name
from serinette.presence import present, redis_time
from serinette.store import Store

log = logging.getLogger(__name__)

# Looked at in one round; the rest of them in the next.
_LOST, _DUE, _STRANDED, _SHRUNK = 1_000, 500, 200, 500
# An ended job stays whole in Redis for so long. Walks over those that must stay longer begin anew after a pause.
_WHOLE_S = 600.0
_WALK_EVERY_S = 30.0
_TIDY_EVERY_S = 60.0
# Keys looked at in one step of a walk over all of them: about a millisecond of Redis.
_KEYS = 1_000

Planned = TypeVar("Planned")


class Sweeper:
    """One round: leases, deadlines, lanes, removed pools, unrecorded ends, jobs that shrink, what RQ leaves behind."""

    def __init__(
        self,
        redis: Redis,
        store: Store,
        settings: ControllerSettings,
        metrics: ControllerMetrics | None = None,
        whole_s: float = _WHOLE_S,
    ) -> None:
        """`whole_s`: how long an ended job stays whole in Redis at least."""
        self._redis = redis
        self._keys = settings.keys
        self._settings = settings
        self._metrics = metrics
        self._whole_s = whole_s
        self._jobs = Jobs(redis, settings.redis_prefix)
        self._store_calls = StoreCalls(store)
        self._record_ends = UnrecordedEnds(self._jobs, settings.keys, self._store_calls)
        self._removed = RemovedPools(settings.pools, settings.pool, settings.rehome_after_s)
        self._prune_lists = ListPruner(redis, settings.keys)
        self._left: set[str] = set()
        self._shrink_from: str | float = "-inf"
        self._shrink_at_s = self._tidy_at_s = 0.0
        self._cursor = 0

    def __call__(self) -> None:
        """Raises RedisError when Redis does not answer."""
        for part in (
            self._lost,
            self._due,
            self._lanes,
            self._record,
            self._shrink,
            self._tidy,
            self._prune_an_index,
        ):
            try:
                part()
            except Exception as error:
                if isinstance(error, RedisError) and not is_of_one_job(error):
                    raise
                log.exception("%s failed; the rest goes on", part.__name__.lstrip("_"))
        if self._metrics:
            self._metrics.round_ended()

    # -- jobs whose slot, deadline or pool is gone

    def _lost(self) -> None:
        due = self._jobs(calls.overdue(self._settings.heartbeat_ttl_s, _LOST))
        cases = zip(due, self._jobs.joined(calls.looks([job_id for job_id, _ in due])), strict=True)
        self._carry_out(
            self._planned((job_id, partial(plan_lost, one.entry, attempt)) for (job_id, attempt), one in cases)
        )
        self._to_the_end(self._keys.leases, [f"{job}:{attempt}" for job, attempt in due if job in self._left])

    def _due(self) -> None:
        at = redis_time(self._redis)
        due: Any = self._redis.zrange(self._keys.deadlines, "-inf", at.timestamp(), byscore=True, offset=0, num=_DUE)
        ids = [job_id.decode() for job_id in due]
        seen = list(self._jobs.joined(calls.looks(ids)))
        cases = zip(ids, seen, strict=True)
        plans = self._planned((job_id, partial(plan_due, one.entry, at)) for job_id, one in cases)
        over = [call for job_id, one in zip(ids, seen, strict=True) if (call := self._over(job_id, one.entry))]
        self._jobs.many(over)
        self._carry_out(plans)
        self._to_the_end(self._keys.deadlines, self._left.intersection(ids))

    def _over(self, job_id: str, entry: Entry | None) -> Call[bool] | None:
        """Its deadline does not count any more, unless it is another job by then."""
        if job_id in self._left or (entry and entry.status is JobStatus.QUEUED and not entry.attempts):
            return None
        guard = (("HGET", self._keys.job(job_id), "created_at"), entry.fields.get("created_at", "") if entry else "")
        return calls.guarded([guard], [("ZREM", self._keys.deadlines, job_id)])

    def _to_the_end(self, index: str, left: Collection[str]) -> None:
        """Of what is due: jobs that are left as they are hide no others. A lease that was renewed stays so."""
        if left:
            self._redis.zadd(index, dict.fromkeys(left, redis_time(self._redis).timestamp()), xx=True, gt=True)

    def _lanes(self) -> None:
        lanes = known_lanes(self._redis, self._keys)
        requeued = self._jobs.many([calls.heal(queue_name(pool, lane)) for pool, lane in lanes]) if lanes else []
        self._count(Action.REQUEUE, sum(requeued))
        self._prune_lists(lanes)
        foreign = any(self._removed.foreign(pool) for pool, _ in lanes)
        up = {worker.pool for worker in present(self._redis, self._keys)} if foreign else set()
        for pool, lane in self._removed.lanes(lanes, up, time.monotonic()):
            found: Any = self._redis.zrange(self._keys.waiting(pool, lane), 0, _STRANDED + len(self._left) - 1)
            ids = [job_id.decode() for job_id in found]
            cases = zip(ids, self._jobs.joined(calls.looks(ids)), strict=True)
            self._carry_out(self._planned((job_id, partial(self._removed.plan, one.entry)) for job_id, one in cases))

    def _planned(self, cases: Iterable[tuple[str, Callable[[], Planned | None]]]) -> list[Planned]:
        """Of those that need something and can be read."""
        plans = []
        for job_id, plan in cases:
            try:
                if made := plan():
                    plans.append(made)
            except Exception as error:
                self._leave(job_id, error)
        return plans

    def _leave(self, job_id: str, error: Exception) -> None:
        if job_id not in self._left:
            log.error("job=%s cannot be read or changed, and is left as it is", job_id, exc_info=error)
            self._count(Action.LEAVE, 1)
        self._left.add(job_id)

    def _carry_out(self, plans: Sequence[Plan]) -> None:
        asking = [plan for plan in plans if plan.attempt]  # which may have left a song there, and that would decide
        answers = self._store_calls.run([partial(self._settle, plan) for plan in asking])
        settled = dict(zip((plan.entry.id for plan in asking), answers, strict=True))
        for plan in plans:
            with logs.about(job=plan.entry.id):
                try:
                    action = self._act(plan, settled.get(plan.entry.id, False))
                except Exception as error:
                    if isinstance(error, RedisError) and not is_of_one_job(error):
                        raise
                    self._leave(plan.entry.id, error)
                    continue
                if action is not None:
                    log.info("%s attempts=%d", action, len(plan.entry.attempts))
                    self._count(action, 1)

    def _act(self, plan: Plan, settled: Action | bool | Exception | None) -> Action | None:
        """What was done; None where the job had moved by itself, or must wait for the store. `settled`: what came of
        asking the store.
        """
        entry = plan.entry
        if isinstance(settled, RedisError):
            raise settled
        if isinstance(settled, Exception):
            if not isinstance(settled, StoreUnavailable):
                self._leave(entry.id, settled)
                return None
            if plan.outcome:  # a retry need not wait: the next attempt finds what the store has
                return None
        elif settled is not False:
            return settled if isinstance(settled, Action) else None
        attempt_id = plan.attempt.id if plan.attempt and entry.owner else ""
        if plan.outcome:
            call = calls.finish(entry.id, attempt_id, plan.outcome, recorded=False, if_overdue=True, of=entry)
            return plan.action if self._jobs(call).decided else None
        if plan.pool:
            return plan.action if self._jobs(calls.move(entry.id, entry.pool, plan.pool)) else None
        released = self._jobs(
            calls.release(entry.id, attempt_id, entry.lost(last=False), charged=True, if_overdue=True)
        )
        return plan.action if released is AttemptState.RELEASED else None

    def _settle(self, plan: Plan, store: Store) -> Action | bool:
        """End a job as its `job.json` says, which is put now where the job is to end. What was done; True: the job had
        moved by itself; False: there is no `job.json`. In a thread that may outlive its round: what it puts late must
        still end its job, or be deleted with it.
        """
        record = find_end(store, plan.entry)
        if record is None and plan.record:
            record = put_record(store, plan.record, plan.entry)
        if record is None:
            return False
        done = finish_as(self._jobs, record, by=plan.entry.owner or "").decided
        return not done or (plan.action if record == plan.record else Action.FINISH)

    # -- jobs that have ended

    def _record(self) -> None:
        self._count(Action.RECORD, self._record_ends())

    def _shrink(self) -> None:
        at_s = time.monotonic()
        if at_s < self._shrink_at_s:
            return
        last = redis_time(self._redis).timestamp() - self._whole_s
        found: Any = self._redis.zrange(
            self._keys.ended, self._shrink_from, last, byscore=True, offset=0, num=_SHRUNK, withscores=True
        )
        ids = [job_id.decode() for job_id, _ in found]
        seen = list(self._jobs.joined(calls.looks(ids)))
        if gone := [job_id for job_id, one in zip(ids, seen, strict=True) if one.entry is None]:
            self._redis.zrem(self._keys.ended, *gone)  # its time was over before it could shrink
        entries = [one.entry for one in seen if one.entry]
        shrinking = self._planned((entry.id, partial(_shrink, entry)) for entry in entries)
        self._count(Action.SHRINK, sum(self._jobs.many(shrinking)) if shrinking else 0)
        self._shrink_from = f"({found[-1][1]!r}" if found else "-inf"
        if len(found) < _SHRUNK:
            self._shrink_from, self._shrink_at_s = "-inf", at_s + _WALK_EVERY_S

    # -- what stays behind

    def _tidy(self) -> None:
        at_s = time.monotonic()
        if at_s < self._tidy_at_s:
            return
        trim_registries(self._redis, self._keys, self._settings.retention_s)
        self._redis.zremrangebyscore(self._keys.workers, "-inf", redis_time(self._redis).timestamp())
        self._tidy_at_s = at_s + _TIDY_EVERY_S

    def _prune_an_index(self) -> None:
        """Of tenants' lists, in a walk over all keys: drop ids of which nothing is left."""
        answer: Any = self._redis.scan(self._cursor, match=self._keys.jobs("*"), count=_KEYS)
        self._cursor = int(answer[0])
        old = redis_time(self._redis).timestamp() - self._settings.retention_s
        for index in answer[1]:
            ids: Any = self._redis.zrangebyscore(index, "-inf", old)
            for first in range(0, len(ids), _KEYS):
                chunk = [job_id.decode() for job_id in ids[first : first + _KEYS]]
                with self._redis.pipeline(transaction=False) as pipe:
                    for job_id in chunk:
                        pipe.exists(self._keys.job(job_id), self._keys.ended_job(job_id))
                    known = pipe.execute()
                if gone := [job_id for job_id, kept in zip(chunk, known, strict=True) if not kept]:
                    self._redis.zrem(index, *gone)

    def _count(self, action: Action, number: int) -> None:
        if self._metrics and number:
            self._metrics.reconciled(action, number)


def _shrink(entry: Entry) -> Call[bool] | None:
    return calls.shrink(entry) if shrinks(entry) else None
