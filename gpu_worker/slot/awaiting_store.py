"""Jobs whose songs lie in the spool: still held, their heartbeats going on, until the store takes them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from gpu_worker.slot.heartbeat import Heartbeat
from gpu_worker.slot.hold import Hold
from gpu_worker.slot.retry_policy import Decision, Ending, ending_of
from gpu_worker.slot.spool import Parcel, Spool
from serinette.errors import HandBack, StoreUnavailable
from serinette.job import JobError, Record
from serinette.jobs import Jobs, calls
from serinette.jobs.finishing import finish_as
from serinette.store import Store

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
# A try takes about ten seconds of a slot that might generate.
_LONGEST_PAUSE_S = 60.0
_SCAN_EVERY_S = 5.0

Conclude = Callable[[Hold, Heartbeat, Decision, Record | None], None]


@dataclass(frozen=True, slots=True)
class Pending:
    """One held job. `beating` ends its heartbeats."""

    hold: Hold
    heartbeat: Heartbeat
    parcel: Parcel
    record: Record
    beating: ExitStack


class AwaitingStore:
    """What one slot has in the spool, and what dead slots of its pod have left there."""

    def __init__(self, spool: Spool | None, store: Store, jobs: Jobs, conclude: Conclude) -> None:
        self._spool = spool
        self._store = store
        self._jobs = jobs
        self._conclude = conclude
        self._pending: list[Pending] = []
        self._next_s = 0.0
        self._pause_s = _FIRST_PAUSE_S

    @property
    def holding(self) -> bool:
        """Whether jobs of this slot wait here."""
        return bool(self._pending)

    @property
    def full(self) -> bool:
        """Whether no more jobs may be taken: their songs would find no room."""
        return self._spool is not None and self._spool.full

    def hear_cancel(self, job_id: str) -> None:
        """A cancel was published."""
        for pending in self._pending:
            pending.heartbeat.hear_cancel(job_id)

    def add(self, pending: Pending) -> None:
        """Take in a job. Its deadline no longer counts: its songs are there."""
        pending.hold.deadline_s = float("inf")
        self._pending.append(pending)
        self._next_s = time.monotonic() + self._pause_s
        log.warning("job %s: generated, and waits for the store on disk", pending.hold.job_id)

    def send(self) -> None:
        """Bring to the store what can be brought, every now and then."""
        if self._spool is None or time.monotonic() < self._next_s:
            return
        try:
            self._send_own()
            self._send_abandoned(self._spool)
        except StoreUnavailable as error:
            log.warning("%d songs wait for the store: %s", len(self._pending), error)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._next_s = time.monotonic() + self._pause_s
        else:
            self._pause_s = _FIRST_PAUSE_S
            self._next_s = time.monotonic() + _SCAN_EVERY_S

    def give_back(self) -> None:
        """The slot leaves: the jobs return to their lanes, their songs stay on disk for the pod's next slot."""
        error = JobError(code=HandBack.code, message="the worker leaves; the song lies on its disk", retryable=True)
        for pending in list(self._pending):
            self._over(pending, Decision(Ending.RETURNED, error))
            pending.parcel.release()

    def _send_own(self) -> None:
        for pending in list(self._pending):
            if pending.hold.superseded or pending.hold.canceled:
                pending.parcel.discard()
                self._over(pending, Decision(Ending.CANCELED))  # of one that is another's by now nothing is written
                continue
            winner = pending.parcel.send(self._store, pending.record)
            pending.hold.generated = winner.attempt is not None and winner.attempt.id == pending.hold.attempt.id
            self._over(pending, ending_of(winner), winner)

    def _over(self, pending: Pending, decision: Decision, record: Record | None = None) -> None:
        self._pending.remove(pending)
        try:
            self._conclude(pending.hold, pending.heartbeat, decision, record)
        finally:
            pending.beating.close()

    def _send_abandoned(self, spool: Spool) -> None:
        for parcel in spool.abandoned():
            try:
                self._send_abandoned_parcel(parcel, parcel.record)
            finally:
                parcel.release()

    def _send_abandoned_parcel(self, parcel: Parcel, record: Record | None) -> None:
        if record is None:
            parcel.discard()
            return
        seen = self._jobs(calls.look([record.job_id]))[0]
        if seen.shrunk or (seen.entry and (seen.entry.status.ended or seen.entry.cancel_requested)):
            parcel.discard()
            return
        finish_as(self._jobs, parcel.send(self._store, record))
        log.info("job %s: its song came to the store, though its slot had died", record.job_id)
