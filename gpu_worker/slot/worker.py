"""RQ's SimpleWorker, made to hold one song for an hour, to leave when asked and to outlive its Redis."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
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

from gpu_worker.slot.awaiting_store import AwaitingStore, Pending
from gpu_worker.slot.clock import song_additions
from gpu_worker.slot.drain import Drain
from gpu_worker.slot.heartbeat import Heartbeat
from gpu_worker.slot.hold import Hold
from gpu_worker.slot.lanes import lane_order
from gpu_worker.slot.retry_policy import Decision, Ending, decide, ending_of, is_suspect
from gpu_worker.slot.song import Singer
from gpu_worker.slot.spool import Parcel, Spooled
from gpu_worker.slot.tracing import traced
from serinette import logs, telemetry
from serinette.errors import InvalidSpec, NotFound, SerinetteError, StoreUnavailable
from serinette.job import JobStatus, Record
from serinette.jobs import Claimed, Finished, Jobs, Lease, Outcome, Standing, calls
from serinette.jobs.finishing import finish_as, put_record, record_of
from serinette.names import Lane, queue_name
from serinette.presence import record_pace

log = logging.getLogger(__name__)

# An idle slot notices a stop, and jobs that no token woke it for, within this.
_IDLE_S = 1
# How long a Redis that answers, and refuses to write (a replica during a failover), is asked again.
_REFUSED_FOR_S = 900.0
_REFUSED_PAUSE_S = 1.0


class SlotWorker(SimpleWorker):
    """One slot. Its connection must be patient (`connect_patiently`).

    Of RQ's worker it is the registration, the loop and the heartbeat while idle. Jobs are claimed and ended by
    transitions (serinette/jobs), which keep RQ's own view of both.
    """

    def __init__(
        self,
        name: str,
        connection: Redis,
        singer: Singer,
        drain: Drain,
        report_busy: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """`report_busy` is called with whether there is a job in hand."""
        settings = self._settings = singer.settings
        super().__init__(
            [queue_name(settings.pool, lane) for lane in Lane],
            name=name,
            connection=connection,
            serializer=JSONSerializer,
            worker_ttl=15 + _IDLE_S,
            log_job_description=False,
        )
        self.claims = 0
        self._singer = singer
        self._drain = drain
        self._report_busy = report_busy
        self._lanes = dict(zip(Lane, self.queues, strict=True))
        self._jobs = Jobs(connection, settings.redis_prefix)
        self._lease = Lease(name, settings.heartbeat_ttl_s, settings.heartbeat_ttl_s)
        self._hold: Hold | None = None
        self._heartbeat: Heartbeat | None = None
        self._spooled: Parcel | None = None
        self._awaiting = AwaitingStore(singer.spool, singer.store, self._jobs, self._conclude)
        self._known_until_s = 0.0

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
        """Keep this worker known for one heartbeat's life, whatever RQ asks for, and no more often than that takes."""
        if time.monotonic() >= self._known_until_s:
            self._known_until_s = time.monotonic() + self._settings.heartbeat_s
            super().heartbeat(self._settings.heartbeat_ttl_s, pipeline)

    def subscribe(self) -> None:
        """Listen for canceled jobs instead of RQ's stop commands, which reach no SimpleWorker's job."""
        self.pubsub = PubSub(self.connection.connection_pool, ignore_subscribe_messages=True)
        self.pubsub.subscribe(**{self._settings.keys.cancels: self._hear_cancel})
        thread = self.pubsub.run_in_thread(
            sleep_time=0.5, daemon=True, exception_handler=self._pubsub_exception_handler
        )
        self.pubsub_thread = thread  # type: ignore[assignment]  # RQ's own annotation stops at its None

    def _hear_cancel(self, message: dict[str, Any]) -> None:
        job_id = message["data"].decode()
        if heartbeat := self._heartbeat:
            heartbeat.hear_cancel(job_id)
        self._awaiting.hear_cancel(job_id)

    def _pubsub_exception_handler(self, exc: Exception, pubsub: PubSub, pubsub_thread: PubSubWorkerThread) -> None:
        if isinstance(exc, StopRequested):  # the slot leaves while Redis is away
            pubsub_thread.stop()
            return
        log.warning("cancels come with the heartbeat only, for now: %s", exc)
        time.sleep(_IDLE_S)

    # -- taking jobs

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """The next job, claimed; None, which ends RQ's loop, once this slot is to leave.

        No job is taken while the engine is not ready: other workers may be. None while the spool is full: its song
        would have no place. And none while RQ is suspended.
        """
        woken = False
        while not self._drain.requested:
            self._awaiting.send()
            self.heartbeat()
            if self._awaiting.full or not self._singer.engine.ready(_IDLE_S / 2):
                self._pause(_IDLE_S / 2)
                continue
            if self._suspended():
                self._pause(_IDLE_S)
                continue
            if taken := self.take(woken=woken):
                return taken
            woken = self.connection.blpop([self._settings.keys.wake(self._settings.pool)], timeout=_IDLE_S) is not None
        self._leave()
        return None

    def _suspended(self) -> bool:
        """Whether `rq suspend` holds; if so, RQ's tools see it in this worker's state."""
        suspended = bool(is_suspended(self.connection))
        was = self.get_state() == WorkerStatus.SUSPENDED
        if suspended is not was:
            log.info("suspended: no job begins until `rq resume`" if suspended else "resumed")
        if suspended:  # each time, for the end of a job that waited for the store makes it idle
            self.set_state(WorkerStatus.SUSPENDED)
        elif was:
            self.set_state(WorkerStatus.BUSY if self._awaiting.holding else WorkerStatus.IDLE)
        return suspended

    def take(self, *, woken: bool = False) -> tuple[Job, Queue] | None:
        """Claim the next job, if there is one. `woken`: by a token."""
        attempt_id, lanes, began_s = uuid4().hex, lane_order(self.claims), time.time()
        claimed: Claimed | bool = True
        while claimed is True and not self._drain.requested:
            claimed = self._jobs(calls.claim(attempt_id, self._lease, self._settings.pool, lanes, woken=woken))
        if isinstance(claimed, bool):
            return None
        self.claims += 1
        entry = claimed.entry
        *earlier, attempt = entry.attempts
        until_s = time.monotonic() + entry.timeout_s
        self._hold = Hold(entry, attempt, self._lease, self._drain, until_s, is_suspect(earlier), claim_began_s=began_s)
        return Job(entry.id, self.connection, JSONSerializer), self._lanes[entry.lane]

    def _leave(self) -> None:
        while self._awaiting.holding and not self._drain.over:
            self._awaiting.send()
            self.heartbeat()
            time.sleep(_IDLE_S / 5)
        self._awaiting.give_back()
        self._drain.holding = False

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Generate what was claimed, and write what became of it."""
        hold = self._hold
        if hold is None:
            raise RuntimeError("no job is held")
        with logs.about(job=hold.job_id, attempt=hold.attempt.id), traced(hold), self._beating(hold) as heartbeat:
            self._perform(hold, heartbeat)

    @contextmanager
    def _beating(self, hold: Hold) -> Iterator[Heartbeat]:
        how = ", alone, suspected of the end of an engine or worker" if hold.suspect else ""
        log.info("job %s: attempt %d begins%s", hold.job_id, hold.attempt.number, how)
        self._drain.holding = True
        self._report_busy(True)
        try:
            with ExitStack() as beating:
                heartbeat = Heartbeat(hold, self._jobs, self._settings.heartbeat_s)
                self._heartbeat = beating.enter_context(heartbeat)
                yield heartbeat
                if (parcel := self._spooled) and (record := parcel.record):
                    self._awaiting.add(Pending(hold, heartbeat, parcel, record, beating.pop_all()))
        finally:
            self._hold = self._heartbeat = self._spooled = None
            self._drain.holding = self._awaiting.holding
            self._report_busy(False)

    def _pause(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s and not self._drain.requested:
            self.heartbeat()
            time.sleep(_IDLE_S / 5)

    # -- ending jobs

    def _perform(self, hold: Hold, heartbeat: Heartbeat) -> None:
        if self._drain.requested:
            self._conclude(hold, heartbeat, Decision(Ending.RETURNED), None)
            return
        try:
            record = self._singer.performance(hold, heartbeat).generate()
        except StopRequested:
            raise
        except Spooled as spooled:
            self._spooled = spooled.parcel
        except Exception as error:
            if not isinstance(error, SerinetteError | RedisError):
                log.exception("job %s: unexpected", hold.job_id)
            self._fail(hold, heartbeat, decide(error, hold.entry.retries_left))
        else:
            self._conclude(hold, heartbeat, ending_of(record), record)

    def _fail(self, hold: Hold, heartbeat: Heartbeat, decision: Decision) -> None:
        """An attempt after the first may have a frozen predecessor: from the record on that one comes too late."""
        record = None
        if decision.ending in {Ending.FAILED, Ending.CANCELED} and hold.attempt.number > 1:
            outcome = Outcome(JobStatus(decision.ending), decision.error, gpu_s=hold.unrecorded_gpu_s)
            try:
                record = put_record(self._singer.store, record_of(hold.entry, hold.attempt, outcome))
                decision = ending_of(record)
            except (StoreUnavailable, NotFound, InvalidSpec, LookupError, TypeError, ValueError) as error:
                log.warning("job %s ends without a record: %s", hold.job_id, error)
        self._conclude(hold, heartbeat, decision, record)

    def _conclude(self, hold: Hold, heartbeat: Heartbeat, decision: Decision, record: Record | None) -> None:
        heartbeat.concluding = True
        telemetry.note(outcome=decision.ending, code=decision.error.code if decision.error else "")
        with telemetry.span("conclude"):
            written = self._insist(lambda: self._written(hold, heartbeat, decision, record), hold)
        why = f" ({decision.error.code}: {decision.error.message})" if decision.error else ""
        how = decision.ending if written else f"{decision.ending}, but superseded: nothing written"
        log.info("job %s: attempt %d %s%s", hold.job_id, hold.attempt.number, how, why)
        if written and record and record.result and hold.generated:
            with suppress(RedisError):  # an ETA's accuracy, no more
                record_pace(self.connection, self._settings.keys, self._settings.pool, record.result.timings.run_s)

    def _insist(self, act: Callable[[], bool], hold: Hold) -> bool:
        until_s = time.monotonic() + _REFUSED_FOR_S
        while True:
            try:
                return act()
            except ResponseError as error:
                if hold.drain.must_leave or time.monotonic() > until_s:
                    raise
                log.warning("job %s: Redis refuses its end, asking again: %s", hold.job_id, error)
                time.sleep(_REFUSED_PAUSE_S)

    def _written(self, hold: Hold, heartbeat: Heartbeat, decision: Decision, record: Record | None) -> bool:
        """Whether the job is as decided now, by this call or by an earlier one whose answer was lost."""
        if decision.ending in {Ending.RETRIED, Ending.RETURNED}:
            return self._released(hold, decision) or (
                heartbeat.resume() is Standing.MINE and self._released(hold, decision)
            )
        finished = self._finished(hold, decision, record)
        if finished.status is None and not finished.held and heartbeat.resume() is Standing.MINE:
            finished = self._finished(hold, decision, record)
        return finished.status is JobStatus(decision.ending)

    def _released(self, hold: Hold, decision: Decision) -> bool:
        charged = decision.ending is Ending.RETRIED
        gpu_s = hold.unrecorded_gpu_s if charged else 0.0
        standing = self._jobs(calls.release(hold.job_id, hold.attempt.id, decision.error, charged=charged, gpu_s=gpu_s))
        return standing in {Standing.RELEASED, Standing.WAITS}

    def _finished(self, hold: Hold, decision: Decision, record: Record | None) -> Finished:
        if record is None:
            outcome = Outcome(JobStatus(decision.ending), decision.error, gpu_s=hold.unrecorded_gpu_s)
            return self._jobs(calls.finish(hold.job_id, hold.attempt.id, outcome, recorded=False, by=hold.attempt.id))
        mine = record.attempt is not None and record.attempt.id == hold.attempt.id
        result = record.result if hold.generated else None
        additions = song_additions(hold.entry.pool, result, hold.clock) if result else ()
        gpu_s = hold.unrecorded_gpu_s if mine else 0.0
        return finish_as(self._jobs, record, gpu_s=gpu_s, additions=additions, by=hold.attempt.id)
