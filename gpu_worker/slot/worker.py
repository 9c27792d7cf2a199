"""RQ's SimpleWorker, made to hold one song for an hour, to leave when asked and to outlive its Redis."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any

from redis import Redis, RedisError
from redis.client import Pipeline, PubSub, PubSubWorkerThread
from rq import SimpleWorker
from rq.exceptions import DeserializationError, StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty
from rq.worker.base import WorkerStatus

from gpu_worker.slot.aside import Aside, Pending
from gpu_worker.slot.books import Books
from gpu_worker.slot.drain import Drain
from gpu_worker.slot.hold import Hold
from gpu_worker.slot.lanes import lane_order
from gpu_worker.slot.pulse import Pulse
from gpu_worker.slot.record import Ended, bar
from gpu_worker.slot.song import Singer
from gpu_worker.slot.spool import Parcel, Spooled
from gpu_worker.slot.task import performing
from gpu_worker.slot.tracing import traced
from gpu_worker.slot.verdict import Ending, Verdict, ending_of, judge
from serinette import logs
from serinette.errors import SerinetteError
from serinette.job import JobError, JobStatus, Result
from serinette.ledger import Ledger, Outcome
from serinette.names import SING_TASK, Lane, queue_name
from serinette.presence import record_pace
from serinette.spec import SCHEMA

log = logging.getLogger(__name__)

# RQ blocks for `worker_ttl - 15` seconds on empty lanes; an idle slot notices a stop within this.
_IDLE_S = 1
# A job of a newer schema comes round again at once when nothing else waits.
_NEWER_SCHEMA_PAUSE_S = 2.0


class Deadlines(BaseDeathPenalty):
    """Leaves the job's time to `Hold.check`, which does not strike between the song and its record."""

    def setup_death_penalty(self) -> None:
        """Nothing to arm."""

    def cancel_death_penalty(self) -> None:
        """Nothing to disarm."""


class SlotWorker(SimpleWorker):
    """One slot. Its connection must be patient (`connect_patiently`)."""

    death_penalty_class = Deadlines

    def __init__(
        self,
        name: str,
        connection: Redis,
        singer: Singer,
        drain: Drain,
        tell_busy: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """`tell_busy` is told whether there is a job in hand."""
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
        self._tell_busy = tell_busy
        self._lanes = dict(zip(Lane, self.queues, strict=True))
        self._ledger = Ledger(connection, settings.keys, settings.retention_s)
        self._books = Books(self, self._ledger, settings.retention_s, settings.pool)
        self._hold: Hold | None = None
        self._pulse: Pulse | None = None
        self._spooled: Parcel | None = None
        self._aside = Aside(singer.spool, singer.store, self._ledger, self._conclude)

    # -- what RQ does otherwise

    @property
    def connection_timeout(self) -> int:
        """RQ lengthens the connection's timeout to this; ours is long enough for a short blocking pop."""
        return _IDLE_S + 1

    def _install_signal_handlers(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._drain.on_signal)

    def run_maintenance_tasks(self) -> None:
        """Not from slots: api/maintenance does it, also while no worker runs."""

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Keep this worker known for one heartbeat's life, whatever RQ asks for."""
        super().heartbeat(self._settings.heartbeat_ttl_s, pipeline)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds that one heartbeat holds a job; RQ's would be the job's timeout and a minute."""
        return self._settings.heartbeat_ttl_s

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:
        """Nothing: the claim has written it, in one transaction with the ledger's entry."""

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
        if pulse := self._pulse:
            pulse.hear_cancel(job_id)
        self._aside.hear_cancel(job_id)

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
        """The next job; None, which ends RQ's loop, once this slot is to leave.

        No job is taken while the engine is not ready: other workers may be. And none while the spool is full: its song
        would have no place.
        """
        while not self._drain.requested:
            self._aside.send()
            if self._aside.full or not self._singer.engine.ready(_IDLE_S / 2):
                self._pause(_IDLE_S / 2)
                continue
            self._ordered_queues = [self._lanes[lane] for lane in lane_order(self.claims)]
            try:
                popped = super().dequeue_job_and_maintain_ttl(_IDLE_S, max_idle_time=_IDLE_S)
            except (RedisError, StopRequested):
                raise
            except Exception as error:
                self._refuse(error)
                continue
            if popped:
                return popped
        self._leave()
        return None

    def _leave(self) -> None:
        while self._aside.holding and not self._drain.over:
            self._aside.send()
            self.heartbeat()
            time.sleep(_IDLE_S / 5)
        self._aside.give_back()
        self._drain.holding = False

    def _refuse(self, error: Exception) -> None:
        """RQ cannot read a job that it popped: settle it, or the sweep would put it back for ever."""
        job_id = getattr(error, "job_id", None)
        if job_id is None:
            raise error
        log.exception("job %s cannot be read", job_id)
        message = "the job's entry in Redis cannot be read; submit it again"
        self._ledger.settle(job_id, Outcome(JobStatus.FAILED, JobError(code=SerinetteError.code, message=message)))

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Claim a popped job, sing it and write what became of it."""
        self.claims += 1
        if self._drain.requested:
            queue.push_job_id(job.id, at_front=True)
        elif _is_newer(job):
            log.info("job %s needs a newer worker; it goes to the back of its lane", job.id)
            queue.push_job_id(job.id)
            self._pause(_NEWER_SCHEMA_PAUSE_S)
        elif hold := self._books.claim(job, queue, self._drain):
            with logs.about(job=job.id, attempt=hold.attempt.id), traced(hold), self._held(hold):
                self.perform_job(job, queue, hold.execution)
        self.set_state(WorkerStatus.IDLE)

    @contextmanager
    def _held(self, hold: Hold) -> Iterator[None]:
        how = ", alone, suspected of the end of an engine or worker" if hold.suspect else ""
        log.info("job %s: attempt %d begins%s", hold.job.id, hold.attempt.number, how)
        self._hold, self._drain.holding = hold, True
        self._tell_busy(True)
        try:
            with ExitStack() as beating:
                pulse = self._pulse = beating.enter_context(self._beating(hold))
                token = performing.set(self._singer.performance(hold, pulse))
                try:
                    yield
                finally:
                    performing.reset(token)
                if (parcel := self._spooled) and (record := parcel.record):
                    self._aside.add(Pending(hold, pulse, parcel, record, beating.pop_all()))
        finally:
            self._hold = self._pulse = self._spooled = None
            self._drain.holding = self._aside.holding
            self._tell_busy(False)

    def _beating(self, hold: Hold) -> Pulse:
        beat = partial(self.maintain_heartbeats, hold.job, hold.execution)
        return Pulse(hold, self._ledger, beat, self._settings.heartbeat_s, partial(self._books.reenter, hold))

    def perform_job(self, job: Job, queue: Queue, execution: Execution) -> bool:
        """Run the job, if it is a song: RQ would run any function that its entry names."""
        if _task(job) == SING_TASK:
            return bool(super().perform_job(job, queue, execution))
        message = "the job's entry in Redis does not name a song; submit it again"
        self._end(Verdict(Ending.FAILED, JobError(code=SerinetteError.code, message=message)))
        return False

    def _pause(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s and not self._drain.requested:
            self.heartbeat()
            time.sleep(_IDLE_S / 5)

    # -- ending jobs

    def _finalize_success(self, job: Job, queue: Queue, execution: Execution, return_value: object) -> None:
        result = Result.model_validate(return_value)
        self._end(Verdict(Ending.SUCCEEDED), result)

    def _finalize_failure(
        self,
        job: Job,
        queue: Queue,
        execution: Execution,
        exc_info: tuple[type[BaseException] | None, BaseException | None, TracebackType | None],
    ) -> None:
        error = exc_info[1]
        if error is None or not isinstance(error, Exception) or isinstance(error, StopRequested):
            raise error or RuntimeError("an attempt failed without an error")
        if isinstance(error, Spooled):
            self._spooled = error.parcel
            return
        if not isinstance(error, SerinetteError | RedisError | Ended):
            log.exception("job %s: unexpected", job.id, exc_info=error)
        record = error.record if isinstance(error, Ended) else None
        verdict = ending_of(record) if record else judge(error, job.retries_left or 0)
        if self._hold and not record and verdict.ending in {Ending.FAILED, Ending.CANCELED}:
            record = bar(self._singer.store, self._hold, Outcome(JobStatus(verdict.ending), verdict.error))
            verdict = ending_of(record) if record else verdict
        self._end(verdict, record.result if record else None)

    def _end(self, verdict: Verdict, result: Result | None = None) -> None:
        if self._hold is None or self._pulse is None:
            raise RuntimeError("no job is held")
        self._conclude(self._hold, self._pulse, verdict, result)

    def _conclude(self, hold: Hold, pulse: Pulse, verdict: Verdict, result: Result | None) -> None:
        pulse.concluding = True
        written = self._books.conclude(hold, verdict, result)
        why = f" ({verdict.error.code}: {verdict.error.message})" if verdict.error else ""
        how = verdict.ending if written else f"{verdict.ending}, but superseded: nothing written"
        log.info("job %s: attempt %d %s%s", hold.job.id, hold.attempt.number, how, why)
        if written and result and hold.sang:
            with suppress(RedisError):  # an ETA's accuracy, no more
                record_pace(self.connection, self._settings.keys, self._settings.pool, result.timings.run_s)


def _task(job: Job) -> str | None:
    try:
        return job.func_name
    except DeserializationError:
        return None


def _is_newer(job: Job) -> bool:
    """Whether the job's spec was written by a newer gateway. One that cannot be read is for the attempt to refuse."""
    try:
        return int(job.kwargs["spec"]["schema"]) > SCHEMA
    except (DeserializationError, LookupError, TypeError, ValueError):
        return False
