"""What a slot says and hears while it holds a job: its lease and progress out, the cancel flag in."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from contextvars import copy_context
from types import TracebackType
from typing import Self

from redis import RedisError
from rq.exceptions import StopRequested

from gpu_worker.slot.hold import Hold
from serinette.job import Progress
from serinette.jobs import Jobs, Standing, calls, rq_fields_of

log = logging.getLogger(__name__)

# Steps of a short song on a fast GPU come by the hundred a second; no one can read more than this.
_REPORT_EVERY_S = 0.1
# So long a song that is done waits for a last look at the cancel flag; with Redis away it is recorded all the same.
_LOOK_S = 1.0
# A song is given up at its deadline by the main thread, which then encodes or uploads nothing more. One that has not
# moved for so long after it is stuck inside a library, where no signal reaches it.
_STUCK_AFTER_S = 900.0
_STUCK_EXIT_CODE = 70  # sysexits.h: EX_SOFTWARE


class Heartbeat:
    """A thread beside the song, from claim to end. It may wait for Redis; the song never waits for it."""

    def __init__(self, hold: Hold, jobs: Jobs, beat_every_s: float) -> None:
        self._hold = hold
        self._jobs = jobs
        self._beat_every_s = beat_every_s
        self._next_beat_s = time.monotonic() + beat_every_s
        self._next_report_s = 0.0
        self._latest: deque[Progress] = deque(maxlen=1)
        self._asked = False
        self._looked = threading.Event()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self.concluding = False
        context = copy_context()  # whose log lines are about this job
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name=f"heartbeat-{hold.job_id}", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._wake.set()
        # With Redis away it may be waiting still: then it beats once more for an attempt that is over, in vain.
        self._thread.join(timeout=_REPORT_EVERY_S * 5)

    def report(self, progress: Progress) -> None:
        """Have progress reported soon; the last one counts."""
        self._latest.append(progress)
        self._wake.set()

    def hear_cancel(self, job_id: str) -> None:
        """A cancel was published: look for the flag at once if it is for this job."""
        if job_id == self._hold.job_id:
            self._next_beat_s = 0.0
            self._wake.set()

    def look(self) -> None:
        """Look for the flag at once, and wait until that is done, though not for long: a cancel that was never
        published, or is not heard yet, still comes before the record.
        """
        self._looked.clear()
        self._asked = True
        self._wake.set()
        self._looked.wait(_LOOK_S)

    def beat(self, progress: str = "") -> Standing:
        """Keep the lease, once. Raises RedisError."""
        hold = self._hold
        standing = self._jobs(calls.beat(hold.job_id, hold.attempt.id, hold.lease, progress))
        if standing is Standing.UNKNOWN:
            standing = self.resume()
        hold.canceled = hold.canceled or standing is Standing.CANCEL
        hold.superseded = standing is Standing.LOST
        return standing

    def resume(self) -> Standing:
        """Give the record back to a Redis that came back without it. Raises RedisError."""
        hold, entry = self._hold, self._hold.entry
        limits = (entry.timeout_s, int(entry.fields["ttl_s"]), entry.retries_left + 1)
        rq_fields = rq_fields_of(entry.id, entry.pool, entry.lane, "song", limits)
        standing = self._jobs(calls.resume(entry, hold.attempt.id, hold.lease, rq_fields))
        if standing is Standing.MINE:
            log.warning("job %s: Redis had lost it, and knows it again", entry.id)
        return standing

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._wake.wait(self._pause_s())
                self._wake.clear()
                self._end_if_stuck()
                due = time.monotonic() >= self._next_beat_s or self._asked
                if due or (self._has_news and time.monotonic() >= self._next_report_s):
                    self._beat_once()
        except StopRequested:  # the slot leaves while Redis is away
            return

    @property
    def _has_news(self) -> bool:
        return bool(self._latest) and not self.concluding

    def _pause_s(self) -> float:
        next_s = min(self._next_beat_s, self._next_report_s) if self._has_news else self._next_beat_s
        return max(0.0, next_s - time.monotonic())

    def _beat_once(self) -> None:
        asked, self._asked = self._asked, False
        at_s = time.monotonic()
        self._next_beat_s, self._next_report_s = at_s + self._beat_every_s, at_s + _REPORT_EVERY_S
        progress = self._latest.pop().model_dump_json() if self._has_news else ""
        try:
            self.beat(progress)
        except RedisError as error:  # one that no waiting mends; the next beat tries again
            log.warning("job %s: a heartbeat was not taken: %s", self._hold.job_id, error)
        if asked:
            self._looked.set()

    def _end_if_stuck(self) -> None:
        if not self.concluding and time.monotonic() > self._hold.deadline_s + _STUCK_AFTER_S:
            log.critical("job %s is stuck long past its deadline; this slot ends itself", self._hold.job_id)
            logging.shutdown()
            os._exit(_STUCK_EXIT_CODE)
