"""What a slot says and hears while it holds a job: heartbeats and progress out, the cancel flag in."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from types import TracebackType
from typing import Self

from redis import RedisError
from rq.exceptions import StopRequested

from gpu_worker.slot.hold import Hold
from serinette.job import Progress
from serinette.ledger import Entry, Ledger

log = logging.getLogger(__name__)

# Steps of a short song on a fast GPU come by the hundred a second; nobody can read more than this.
_TELL_EVERY_S = 0.1
# So long a song that is done waits for a last look at the cancel flag; with Redis away it is recorded all the same.
_LOOK_S = 1.0
# A song is given up at its deadline by the main thread, which then encodes or uploads nothing more. One that has not
# moved for so long after it is stuck inside a library, where no signal reaches it.
_STUCK_AFTER_S = 900.0
_STUCK_EXIT_CODE = 70  # sysexits.h: EX_SOFTWARE


class Pulse:
    """A thread beside the song, from claim to end. It may wait for Redis; the song never waits for it."""

    def __init__(
        self, hold: Hold, ledger: Ledger, beat: Callable[[], None], beat_every_s: float, reenter: Callable[[], object]
    ) -> None:
        """`reenter` is called when Redis has lost the job."""
        self._hold = hold
        self._ledger = ledger
        self._beat = beat
        self._beat_every_s = beat_every_s
        self._reenter = reenter
        self._next_beat_s = time.monotonic() + beat_every_s
        self._next_tell_s = 0.0
        self._latest: deque[Progress] = deque(maxlen=1)
        self._asked = False
        self._looked = threading.Event()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self.concluding = False
        context = copy_context()  # whose log lines are about this job
        self._thread = threading.Thread(target=context.run, args=(self._run,), name=f"pulse-{hold.job.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._wake.set()
        # With Redis away it may be waiting still: then it beats once more for nobody, which changes nothing.
        self._thread.join(timeout=_TELL_EVERY_S * 5)

    def tell(self, progress: Progress) -> None:
        """Have progress told soon; the last one told counts."""
        self._latest.append(progress)
        self._wake.set()

    def hear_cancel(self, job_id: str) -> None:
        """Somebody published a cancel: look for the flag at once if it is for this job."""
        if job_id == self._hold.job.id:
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

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._wake.wait(self._pause_s())
                self._wake.clear()
                self._end_if_stuck()
                if time.monotonic() >= self._next_beat_s:
                    self._next_beat_s = time.monotonic() + self._beat_every_s
                    self._once(self._beat_and_look)
                if self._asked:
                    self._asked = False
                    self._once(self._look)
                    self._looked.set()
                if self._tells and time.monotonic() >= self._next_tell_s:
                    self._next_tell_s = time.monotonic() + _TELL_EVERY_S
                    self._once(self._tell)
        except StopRequested:  # the slot leaves while Redis is away
            return

    @property
    def _tells(self) -> bool:
        return bool(self._latest) and not self.concluding

    def _pause_s(self) -> float:
        next_s = min(self._next_beat_s, self._next_tell_s) if self._tells else self._next_beat_s
        return max(0.0, next_s - time.monotonic())

    def _once(self, act: Callable[[], object]) -> None:
        try:
            act()
        except RedisError as error:  # one that no waiting mends; the next beat tries again
            log.warning("job %s: a heartbeat or progress was not reported: %s", self._hold.job.id, error)

    def _beat_and_look(self) -> None:
        self._beat()
        entry = self._look()
        if entry.owner is None and not entry.attempts and entry.outcome is None:
            self._reenter()

    def _look(self) -> Entry:
        """Without an owner the job waits for another claim, or Redis has forgotten this one: the song is not in vain,
        for its record ends the job all the same.
        """
        entry = self._ledger.read(self._hold.job.id)
        self._hold.canceled = self._hold.canceled or entry.cancel_requested
        self._hold.superseded = entry.outcome is not None or entry.owner not in {None, self._hold.attempt.id}
        return entry

    def _tell(self) -> None:
        answer = self._ledger.progress(self._hold.job.id, self._hold.attempt.id, self._latest.pop())
        self._hold.canceled = self._hold.canceled or answer < 0
        if answer == 0:
            self._look()

    def _end_if_stuck(self) -> None:
        if not self.concluding and time.monotonic() > self._hold.deadline_s + _STUCK_AFTER_S:
            log.critical("job %s is stuck long past its deadline; this slot ends itself", self._hold.job.id)
            logging.shutdown()
            os._exit(_STUCK_EXIT_CODE)
