"""A job that this slot holds: from its claim, over its heartbeats, to the end that is written of it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime, timedelta
from functools import partial

from redis import RedisError
from redis.exceptions import ResponseError
from rq.exceptions import StopRequested

from gpu_worker.process_setup import CRASHED_EXIT_CODE
from gpu_worker.slot.drain import Drain
from gpu_worker.slot.retry_policy import Decision, Ending, is_suspect
from gpu_worker.slot.stage_timing import StageTimes
from serinette import telemetry
from serinette.errors import Canceled, HandBack, JobTimeout, Superseded
from serinette.job import JobStatus, Progress, Record, Stage
from serinette.jobs import AttemptState, Entry, Jobs, Lease, Outcome, calls, rq_fields_of
from serinette.jobs.finishing import finish_as
from serinette.names import Keys
from serinette.presence import record_pace

log = logging.getLogger(__name__)

# Steps of a short song on a fast GPU come by the hundred a second; no one can read more than this.
_REPORT_EVERY_S = 0.1
# A job is given up at its deadline by the main thread, which then encodes or uploads nothing more. A job that has
# not moved for so long after it is stuck inside a library, where no signal reaches it.
_STUCK_AFTER_S = 900.0
# How long a Redis that answers, and refuses to write (a replica during a failover), is asked again.
_REFUSED_FOR_S = 900.0
_REFUSED_PAUSE_S = 1.0


class Heartbeat:
    """A thread that keeps a job's lease, reports its progress and hears of its cancel, while the slot works on it.

    Calls `beat` with the latest progress, if any: every `every_s`, soon after progress, and at once when asked.

    It may wait for Redis; the job never waits for it.
    """

    def __init__(self, beat: Callable[[Progress | None], object], every_s: float) -> None:
        self._beat = beat
        self._every_s = every_s
        self._latest: deque[Progress] = deque(maxlen=1)
        self._due = threading.Event()
        self._urgent = threading.Event()
        self._answered = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to beat. Its log lines are about the same job as the caller's."""
        context = copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more. With Redis away it may be waiting: then it beats once more for an attempt that is over."""
        self._stopped = True
        self.beat_soon()
        if self._thread:
            self._thread.join(timeout=_REPORT_EVERY_S * 5)

    def report(self, progress: Progress) -> None:
        """Have progress reported soon; the last one counts."""
        self._latest.append(progress)
        self._due.set()

    def beat_soon(self) -> None:
        """Beat at once, and wait for nothing."""
        self._urgent.set()
        self._due.set()

    def beat_and_wait(self, timeout_s: float) -> None:
        """Beat at once and wait until that is done, `timeout_s` at most."""
        self._answered = threading.Event()
        self.beat_soon()
        self._answered.wait(timeout_s)

    def _run(self) -> None:
        try:
            while not self._stopped:
                self._due.wait(self._every_s)
                self._due.clear()
                self._urgent.clear()
                if not self._stopped:
                    self._beat_once()
                    self._urgent.wait(_REPORT_EVERY_S)
        except StopRequested:  # the slot leaves while Redis is away
            return

    def _beat_once(self) -> None:
        answered = self._answered
        try:
            self._beat(self._latest.pop() if self._latest else None)
        except RedisError as error:  # not an outage, which the client waits out; the next beat tries again
            log.warning("a heartbeat failed: %s", error)
        answered.set()


class HeldJob:
    """One attempt. `entry` is the job's record as it was claimed, `deadline_s` of the monotonic clock."""

    def __init__(self, entry: Entry, lease: Lease, jobs: Jobs, drain: Drain, beat_every_s: float) -> None:
        *earlier, self.attempt = entry.attempts
        self.entry = entry
        self.drain = drain
        self.claim_began_s = time.time()  # Unix
        self._claimed_at_s = time.monotonic()
        self.deadline_s = time.monotonic() + entry.timeout_s
        self.suspect = is_suspect(earlier)
        self.canceled = False
        self.superseded = False
        self.recording = False  # its record may be written: only that decides now
        self.gpu_s = 0.0  # in the engine, whatever came of it
        self.times = StageTimes()
        self._lease = lease
        self._jobs = jobs
        self._concluding = False
        self.heartbeat = Heartbeat(self._beat, beat_every_s)

    @property
    def job_id(self) -> str:
        """Of the job."""
        return self.entry.id

    def now(self) -> datetime:
        """The present by Redis's clock, which began the attempt: this machine's own may be another, or be set back."""
        return self.attempt.started_at + timedelta(seconds=time.monotonic() - self._claimed_at_s)

    # -- while it runs

    def check(self) -> None:
        """Called wherever the job may end early: between stages and a few times a second while waiting.

        RQ's SIGALRM would raise at any line, also right after `job.json` is written, and fail a job that has its song.

        Raises:
            Superseded: another attempt has the job, or it has ended.
            Canceled: its cancel flag is set.
            JobTimeout: it ran for longer than its `timeout_s`.
            HandBack: the time to drain is over.
        """
        if self.superseded:
            raise Superseded(f"attempt {self.attempt.number} lost job {self.job_id} to another, or the job has ended")
        if self.canceled and not self.recording:
            raise Canceled("canceled as asked")
        if time.monotonic() > self.deadline_s and not self.recording:
            raise JobTimeout(
                f"the song was not done within {self.entry.timeout_s} s: ask for fewer seconds, steps or variations, "
                "or give a longer timeout_s"
            )
        if self.drain.over:
            raise HandBack("the worker leaves and gives the job back")

    def not_counted(self, seconds: float) -> None:
        """Move the deadline: time that the job waits for the engine is not its own."""
        self.deadline_s += seconds

    def report(self, stage: Stage, step: int | None = None, steps: int | None = None) -> None:
        """Report a stage, and the denoising steps done and in all. Never waits, never raises."""
        self.times.reached(stage, step)
        engine_s = round(self.times.engine_s(), 3)
        self.heartbeat.report(Progress(stage=stage, step=step, steps=steps, engine_s=engine_s, at=self.now()))

    def on_cancel(self, job_id: str) -> None:
        """A cancel was published: look for the flag at once if it is for this job."""
        if job_id == self.job_id:
            self.heartbeat.beat_soon()

    def beat(self, progress: str = "") -> AttemptState:
        """Keep the lease, once. Raises RedisError."""
        state = self._jobs(calls.beat(self.job_id, self.attempt.id, self._lease, progress))
        if state is AttemptState.UNKNOWN:
            state = self._resume()
        self.canceled = self.canceled or state is AttemptState.CANCEL
        self.superseded = state is AttemptState.LOST
        return state

    def _beat(self, progress: Progress | None) -> None:
        if not self._concluding and time.monotonic() > self.deadline_s + _STUCK_AFTER_S:
            log.critical("job %s is stuck long past its deadline; this slot ends itself", self.job_id)
            logging.shutdown()
            os._exit(CRASHED_EXIT_CODE)
        self.beat(progress.model_dump_json() if progress and not self._concluding else "")

    def _resume(self) -> AttemptState:
        """Give the record back to a Redis that came back without it."""
        entry = self.entry
        limits = (entry.timeout_s, int(entry.fields["ttl_s"]), entry.retries_left + 1)
        rq_fields = rq_fields_of(entry.id, entry.pool, entry.lane, "song", limits)
        state = self._jobs(calls.resume(entry, self.attempt.id, self._lease, rq_fields))
        if state is AttemptState.MINE:
            log.warning("job %s: Redis had lost it, and knows it again", entry.id)
        return state

    # -- its end

    def is_winner(self, record: Record) -> bool:
        """Whether the record that counts is this attempt's."""
        return record.attempt is not None and record.attempt.id == self.attempt.id

    @property
    def unrecorded_gpu_s(self) -> float:
        """What the engine did for this attempt, unless the job's record may have it."""
        return 0.0 if self.recording else self.gpu_s

    def conclude(self, decision: Decision, record: Record | None = None) -> None:
        """Write how the attempt ends, waiting for Redis; `record` is the one in the store that counts, if there is."""
        self._concluding = True
        telemetry.note(outcome=decision.ending, code=decision.error.code if decision.error else "")
        with telemetry.span("conclude"):
            written = self._written(decision, record)
        why = f" ({decision.error.code}: {decision.error.message})" if decision.error else ""
        how = decision.ending if written else f"{decision.ending}, but superseded: nothing written"
        log.info("job %s: attempt %d %s%s", self.job_id, self.attempt.number, how, why)
        if written and record and record.result and record.artifacts and self.is_winner(record):
            with suppress(RedisError):  # an ETA's accuracy, no more
                keys = Keys(self._jobs.prefix)
                record_pace(self._jobs.redis, keys, self.entry.pool, record.result.timings.run_s)

    def _written(self, decision: Decision, record: Record | None) -> bool:
        """Whether the job is as decided now, by this call or by an earlier one whose answer was lost."""
        write = partial(self._finish, decision, record)
        if decision.ending in {Ending.RETRIED, Ending.RETURNED}:
            write = partial(self._release, decision)
        until_s = time.monotonic() + _REFUSED_FOR_S
        while True:
            try:
                written = write()
                if written is None and self._resume() is AttemptState.MINE:
                    written = write()
            except ResponseError as error:
                if self.drain.must_leave or time.monotonic() > until_s:
                    raise
                log.warning("job %s: Redis refuses its end, asking again: %s", self.job_id, error)
                time.sleep(_REFUSED_PAUSE_S)
            else:
                return bool(written)

    def _release(self, decision: Decision) -> bool | None:
        """None: Redis does not know the job."""
        charged = decision.ending is Ending.RETRIED
        gpu_s = self.unrecorded_gpu_s if charged else 0.0
        state = self._jobs(calls.release(self.job_id, self.attempt.id, decision.error, charged=charged, gpu_s=gpu_s))
        return None if state is AttemptState.UNKNOWN else state in {AttemptState.RELEASED, AttemptState.WAITS}

    def _finish(self, decision: Decision, record: Record | None) -> bool | None:
        """None: Redis does not know the job, or no more than that it ended."""
        mine = self.attempt.id
        if record is None:
            outcome = Outcome(JobStatus(decision.ending), decision.error, gpu_s=self.unrecorded_gpu_s)
            finished = self._jobs(calls.finish(self.job_id, mine, outcome, recorded=False, by=mine))
        else:
            won = self.is_winner(record)
            additions = self.times.additions(self.entry.pool, record.result) if won and record.result else ()
            gpu_s = self.unrecorded_gpu_s if won else 0.0
            finished = finish_as(self._jobs, record, gpu_s=gpu_s, additions=additions, by=mine)
        if finished.status is None and not finished.held and not finished.erased:
            return None
        return finished.status is JobStatus(decision.ending)
