"""RQ's SimpleWorker, made to hold one job for an hour, to leave when asked and to outlive its Redis."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis import Redis, RedisError
from redis.client import Pipeline, PubSub, PubSubWorkerThread
from redis.exceptions import ResponseError
from rq import SimpleWorker
from rq.exceptions import StopRequested
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.suspension import is_suspended
from rq.worker import WorkerStatus

from gpu_worker.process_setup import slot_file
from gpu_worker.slot.drain import Drain
from gpu_worker.slot.generation import Generation, SlotResources
from gpu_worker.slot.held_job import HeldJob
from gpu_worker.slot.lane_order import lane_order
from gpu_worker.slot.retry_policy import Decision, Ending, decide, ending_of
from gpu_worker.slot.spool import Parcel, SpooledJobs
from gpu_worker.slot.stage_timing import traced
from serinette import logs
from serinette.errors import InvalidSpec, NotFound, SerinetteError, StoreUnavailable
from serinette.job import JobStatus
from serinette.jobs import Claimed, Jobs, Lease, Outcome, calls
from serinette.jobs.finishing import put_record, record_of
from serinette.jobs.script import is_of_one_job
from serinette.names import Lane, queue_name

log = logging.getLogger(__name__)

# An idle slot notices a stop, and jobs that no token woke it for, within this.
_IDLE_S = 1


class SlotWorker(SimpleWorker):
    """One slot. Its connection must be patient (`connect_patiently`).

    Of RQ's worker it is the registration, the loop and the heartbeat while idle. Jobs are claimed and ended by
    transitions (serinette/jobs), which keep RQ's own view of both.
    """

    def __init__(self, name: str, connection: Redis, resources: SlotResources, drain: Drain) -> None:
        settings = self._settings = resources.settings
        super().__init__(
            [queue_name(settings.pool, lane) for lane in Lane],
            name=name,
            connection=connection,
            serializer=JSONSerializer,
            worker_ttl=15 + _IDLE_S,
            log_job_description=False,
        )
        self._resources = resources
        self._drain = drain
        self._busy_file = slot_file(settings.run_dir, name, "busy") if settings.run_dir else None
        self._up_file = slot_file(settings.run_dir, name, "up") if settings.run_dir else None
        self._full_file = slot_file(settings.run_dir, name, "full") if settings.run_dir else None
        self._lanes = dict(zip(Lane, self.queues, strict=True))
        self._jobs = Jobs(connection, settings.redis_prefix)
        self._lease = Lease(name, settings.heartbeat_ttl_s, settings.heartbeat_ttl_s)
        self.claims = 0
        self.held: HeldJob | None = None
        self.spooled = SpooledJobs(resources.spool, resources.store, self._jobs)
        self._known_until_s = 0.0
        self._woken = False  # by a token, which the next claim uses

    # -- what RQ does otherwise

    @property
    def connection_timeout(self) -> int:
        """RQ lengthens the connection's timeout to this; ours is long enough for a short blocking pop."""
        return _IDLE_S + 1

    def _install_signal_handlers(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._drain.on_signal)

    def run_maintenance_tasks(self) -> None:
        """Not from slots: RQ's would judge running jobs by its own rules."""

    def check_for_suspension(self, burst: bool) -> None:
        """Not here: RQ's loop would neither beat, nor drain, nor send songs. `dequeue_job_and_maintain_ttl` asks."""

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Keep this worker known for one lease, whatever RQ asks for, and no more often than that takes."""
        if time.monotonic() >= self._known_until_s:
            self._known_until_s = time.monotonic() + self._settings.heartbeat_s
            if not self.connection.hexists(self.key, "birth"):  # Redis lost it, or it expired in an outage
                self.connection.delete(self.key)
                self.register_birth()  # type: ignore[no-untyped-call]  # RQ's own
                self.set_state(WorkerStatus.IDLE)
            super().heartbeat(self._settings.heartbeat_ttl_s, pipeline)

    def subscribe(self) -> None:
        """Listen for canceled jobs instead of RQ's stop commands, which reach no SimpleWorker's job."""
        self.pubsub = PubSub(self.connection.connection_pool, ignore_subscribe_messages=True)
        self.pubsub.subscribe(**{self._settings.keys.cancels: self._on_cancel})
        thread = self.pubsub.run_in_thread(
            sleep_time=0.5, daemon=True, exception_handler=self._pubsub_exception_handler
        )
        self.pubsub_thread = thread  # type: ignore[assignment]  # RQ's own annotation stops at its None

    def _on_cancel(self, message: dict[str, Any]) -> None:
        job_id = message["data"].decode()
        if held := self.held:
            held.on_cancel(job_id)
        self.spooled.on_cancel(job_id)

    def _pubsub_exception_handler(self, exc: Exception, pubsub: PubSub, pubsub_thread: PubSubWorkerThread) -> None:
        if isinstance(exc, StopRequested):  # the slot leaves while Redis is away
            pubsub_thread.stop()
            return
        log.warning("cancels are noticed at heartbeats only, for now: %s", exc)
        time.sleep(_IDLE_S)

    # -- taking jobs

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """The next job, claimed; None, which ends RQ's loop, once this slot is to leave.

        No job is taken while the engine is not ready (other workers may be), while the spool is full (its song would
        have no place), or while RQ is suspended.
        """
        if self._up_file:
            self._up_file.touch()
        while not self._drain.requested:
            try:
                if taken := self._looked():
                    return taken
            except ResponseError as error:
                if is_of_one_job(error):
                    raise
                log.warning("Redis takes nothing at the moment, asking again: %s", error)
                time.sleep(_IDLE_S)
        self._leave()
        return None

    def _looked(self) -> tuple[Job, Queue] | None:
        """The next job; None after a short wait if there is none."""
        self.spooled.send()
        self.heartbeat()
        full = self.spooled.full
        _put(self._full_file, there=full)
        if full or not self._resources.engine.ready(_IDLE_S / 2):
            self._pause(_IDLE_S / 2)
        elif self._suspended():
            self._pause(_IDLE_S)
        elif taken := self.take(woken=self._woken):
            self._woken = False
            return taken
        else:
            wake = self._settings.keys.wake(self._settings.pool)
            self._woken = self.connection.blpop([wake], timeout=_IDLE_S) is not None
        return None

    def take(self, *, woken: bool = False) -> tuple[Job, Queue] | None:
        """Claim the next job, if there is one, for `execute_job`. `woken`: by a token."""
        self.held, attempt_id, lanes, began_s = None, uuid4().hex, lane_order(self.claims), time.time()
        claimed: Claimed | bool = True
        while claimed is True and not self._drain.requested:  # there may be more behind what had to be passed over
            claimed = self._jobs(calls.claim(attempt_id, self._lease, self._settings.pool, lanes, woken=woken))
        if isinstance(claimed, bool):
            return None
        self.claims += 1
        self.held = HeldJob(claimed.entry, self._lease, self._jobs, self._drain, self._settings.heartbeat_s)
        self.held.claim_began_s = began_s
        return Job(claimed.entry.id, self.connection, JSONSerializer), self._lanes[claimed.entry.lane]

    def _suspended(self) -> bool:
        """Whether `rq suspend` holds; if so, RQ's tools see it in this worker's state."""
        suspended = bool(is_suspended(self.connection))
        was = self.get_state() == WorkerStatus.SUSPENDED
        if suspended is not was:
            log.info("suspended: no job begins until `rq resume`" if suspended else "resumed")
        if suspended:  # each time, for the end of a job that waited for the store makes it idle
            self.set_state(WorkerStatus.SUSPENDED)
        elif was:
            self.set_state(WorkerStatus.BUSY if self.spooled.held else WorkerStatus.IDLE)
        return suspended

    def _pause(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s and not self._drain.requested:
            self.heartbeat()
            time.sleep(_IDLE_S / 5)

    def _leave(self) -> None:
        while self.spooled.held and not self._drain.over:
            self.spooled.send()
            self.heartbeat()
            time.sleep(_IDLE_S / 5)
        self.spooled.give_back()
        self._drain.holding = False

    # -- working on them

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Generate what was claimed, and write what became of it."""
        held = self.held
        if held is None:
            raise RuntimeError("no job is held")
        with logs.about(job=held.job_id, attempt=held.attempt.id), traced(held.entry, held.attempt, held.claim_began_s):
            how = ", alone, suspected of the end of an engine or worker" if held.suspect else ""
            log.info("job %s: attempt %d begins%s", held.job_id, held.attempt.number, how)
            self._drain.holding = True
            _put(self._busy_file, there=True)
            held.heartbeat.start()
            parcel: Parcel | None = None
            try:
                parcel = self._work_on(held)
                if parcel:
                    self.spooled.add(held, parcel)
            finally:
                if parcel is None:
                    held.heartbeat.stop()
                self.held = None
                self._drain.holding = bool(self.spooled.held)
                _put(self._busy_file, there=False)

    def _work_on(self, held: HeldJob) -> Parcel | None:
        """Generate the job's songs and conclude it; or the parcel in which it waits for the store."""
        if self._drain.requested:
            held.conclude(Decision(Ending.RETURNED))
            return None
        try:
            made = Generation(held, self._resources).run()
        except StopRequested:
            raise
        except Exception as error:
            if not isinstance(error, SerinetteError | RedisError):
                log.exception("job %s: unexpected", held.job_id)
            self._fail(held, decide(error, held.entry.retries_left))
        else:
            if isinstance(made, Parcel):
                return made
            held.conclude(ending_of(made), made)
        return None

    def _fail(self, held: HeldJob, decision: Decision) -> None:
        """A retry may have a frozen predecessor, which changes nothing once the record exists."""
        record = None
        if decision.ending in {Ending.FAILED, Ending.CANCELED} and held.attempt.number > 1:
            outcome = Outcome(JobStatus(decision.ending), decision.error, gpu_s=held.unrecorded_gpu_s)
            try:
                ours = record_of(held.entry, held.attempt, outcome, held.now())
                record = put_record(self._resources.store, ours, held.entry)
                decision = ending_of(record)
            except (StoreUnavailable, NotFound, InvalidSpec, LookupError, TypeError, ValueError) as error:
                log.warning("job %s ends without a record: %s", held.job_id, error)
        held.conclude(decision, record)


def _put(file: Path | None, *, there: bool) -> None:
    if file:
        with suppress(OSError):  # of a full disk: a figure, no more
            file.touch() if there else file.unlink(missing_ok=True)
