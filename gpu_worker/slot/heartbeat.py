"""A thread that keeps a job's lease, reports its progress and hears of its cancel, while the slot works on it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context

from redis import RedisError
from rq.exceptions import StopRequested

from serinette.job import Progress

log = logging.getLogger(__name__)

# Steps of a short song on a fast GPU come by the hundred a second; no one can read more than this.
_REPORT_EVERY_S = 0.1


class Heartbeat:
    """Calls `beat` with the latest progress, if any: every `every_s`, soon after progress, and at once when asked.

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
