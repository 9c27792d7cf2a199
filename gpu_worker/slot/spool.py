"""Finished songs that the store could not take, on bounded local disk, until it can.

A parcel is a directory: the songs by index, then `job.json`, which makes it whole. A slot that works on one holds its
lock as long as it lives; a whole parcel that is not locked was left by a slot that died, and any slot of the pod sends
it. The jobs of a slot's own parcels are still held, and their heartbeats go on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gpu_worker.settings import WorkerSettings
from gpu_worker.slot.drain import RetryingStore
from gpu_worker.slot.held_job import HeldJob
from gpu_worker.slot.retry_policy import Decision, Ending, ending_of
from serinette.errors import HandBack, StoreUnavailable
from serinette.job import JobError, Record
from serinette.jobs import Entry, Jobs, calls
from serinette.jobs.finishing import finish_as, put_record
from serinette.own_directory import lock_directory
from serinette.store import Store

log = logging.getLogger(__name__)

_RECORD = "job.json"
_FIRST_PAUSE_S = 1.0
# A try takes about ten seconds of a slot that might generate.
_LONGEST_PAUSE_S = 60.0
_SCAN_EVERY_S = 5.0


def put_record_or_erase(store: Store | RetryingStore, record: Record, entry: Entry | None = None) -> Record:
    """Record a job with songs; where another attempt's record counts, which is the answer, these songs are erased."""
    winner = put_record(store, record, entry)
    if winner.attempt is None or record.attempt is None or winner.attempt.id != record.attempt.id:
        for artifact in record.artifacts:
            store.delete(artifact.key)
    return winner


@dataclass(slots=True)
class Parcel:
    """One attempt's songs and record, locked by this process."""

    directory: Path
    lock: int | None
    spool: Spool
    sealed: Record | None = None

    def add(self, index: int, data: bytes) -> bool:
        """Keep one song; False if the disk has no room for it."""
        return not self.spool.full and self._write(str(index), data)

    def seal(self, record: Record) -> bool:
        """Make it whole: from now on it may outlive this process. False if the disk has no room for it."""
        if self._write(_RECORD, record.model_dump_json().encode()):
            self.sealed = record
        return self.sealed is not None

    def send(self, store: Store | RetryingStore, record: Record, entry: Entry | None = None) -> Record:
        """Bring it to the store and discard it; the record that counts, which may be another attempt's.

        Raises:
            StoreUnavailable: nothing is lost; to be called again.
        """
        for artifact in record.artifacts:
            if (song := self.directory / str(artifact.index)).exists():
                store.put(artifact.key, song, artifact.content_type)
        winner = put_record_or_erase(store, record, entry)
        self.discard()
        return winner

    def discard(self) -> None:
        """Erase it."""
        (self.directory / _RECORD).unlink(missing_ok=True)  # first: half a parcel must not look whole
        shutil.rmtree(self.directory, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Unlock it, for another slot to send."""
        lock, self.lock = self.lock, None
        if lock is not None:  # a second time the number may be another file's
            os.close(lock)

    def _write(self, name: str, data: bytes) -> bool:
        part = self.directory / f"{name}.part"
        try:
            part.write_bytes(data)
            part.rename(self.directory / name)
        except OSError as error:
            log.warning("the spool cannot keep a song: %s", error)
            part.unlink(missing_ok=True)
            return False
        return True


@dataclass(frozen=True, slots=True)
class Spool:
    """The parcels of all slots of one pod."""

    directory: Path
    max_bytes: int

    @classmethod
    def open(cls, settings: WorkerSettings) -> Spool | None:
        """The spool of `settings`, each store's apart; None where there is to be none."""
        if not settings.spool_max_bytes:
            return None
        home = "\n".join((settings.store_url, settings.store_endpoint or "", settings.redis_prefix))
        name = hashlib.sha256(home.encode()).hexdigest()[:16]
        return cls(settings.work_dir / "spool" / name, settings.spool_max_bytes)

    @property
    def full(self) -> bool:
        """Whether nothing more may be begun: what was begun before may go beyond the bound."""
        return self.used_bytes >= self.max_bytes

    @property
    def used_bytes(self) -> int:
        """Of all parcels."""
        total = 0
        for file in self.directory.glob("*/*"):
            with suppress(OSError):  # sent meanwhile
                total += file.stat().st_size
        return total

    def begin(self, attempt_id: str) -> Parcel | None:
        """A new parcel; None if there is no room."""
        try:
            directory = self.directory / attempt_id
            directory.mkdir(parents=True, exist_ok=True)
            lock = None if self.full else lock_directory(directory)
        except OSError as error:
            log.warning("there is no spool: %s", error)
            return None
        return None if lock is None else Parcel(directory, lock, self)

    def abandoned(self) -> Iterator[tuple[Parcel, Record]]:
        """Whole parcels of slots that died, locked by us from now on. Others that they left are erased."""
        for directory in sorted(self.directory.glob("*")):
            with suppress(OSError):
                if (lock := lock_directory(directory)) is None:
                    continue
                parcel = Parcel(directory, lock, self)
                try:
                    record = Record.model_validate_json((directory / _RECORD).read_bytes())
                except (FileNotFoundError, ValidationError):
                    parcel.discard()
                else:
                    yield parcel, record


class SpooledJobs:
    """The jobs of one slot whose songs are in the spool, and what dead slots of its pod have left there."""

    def __init__(self, spool: Spool | None, store: Store, jobs: Jobs) -> None:
        self._spool = spool
        self._store = store
        self._jobs = jobs
        self._next_s = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self.held: list[tuple[HeldJob, Parcel]] = []

    @property
    def full(self) -> bool:
        """Whether no more jobs may be taken: their songs would find no room."""
        return self._spool is not None and self._spool.full

    def on_cancel(self, job_id: str) -> None:
        """A cancel was published."""
        for held, _ in self.held:
            held.on_cancel(job_id)

    def add(self, held: HeldJob, parcel: Parcel) -> None:
        """Keep a job, whose heartbeats go on. Its deadline no longer counts: its songs are there."""
        held.deadline_s = float("inf")
        self.held.append((held, parcel))
        self._next_s = time.monotonic() + self._pause_s
        log.warning("job %s: generated, and waits for the store on disk", held.job_id)

    def send(self, *, at_once: bool = False) -> None:
        """Bring to the store what can be brought, every now and then or `at_once`."""
        if self._spool is None or not (at_once or time.monotonic() >= self._next_s):
            return
        try:
            for held, parcel in list(self.held):
                self._send_held(held, parcel)
            for parcel, record in self._spool.abandoned():
                self._send_abandoned(parcel, record)
        except StoreUnavailable as error:
            log.warning("%d songs wait for the store: %s", len(self.held), error)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._next_s = time.monotonic() + self._pause_s
        else:
            self._pause_s = _FIRST_PAUSE_S
            self._next_s = time.monotonic() + _SCAN_EVERY_S

    def give_back(self) -> None:
        """The slot leaves: the jobs return to their lanes, their songs stay on disk for the pod's next slot."""
        error = JobError(code=HandBack.code, message="the worker is draining; the song is on its disk", retryable=True)
        for held, parcel in list(self.held):
            self._conclude(held, parcel, Decision(Ending.RETURNED, error))
            parcel.release()

    def _send_held(self, held: HeldJob, parcel: Parcel) -> None:
        record = parcel.sealed
        if record is None or held.superseded or held.canceled:
            parcel.discard()
            self._conclude(held, parcel, Decision(Ending.CANCELED))  # where another attempt has it, nothing is written
            return
        winner = parcel.send(self._store, record, held.entry)
        self._conclude(held, parcel, ending_of(winner), winner)

    def _conclude(self, held: HeldJob, parcel: Parcel, decision: Decision, record: Record | None = None) -> None:
        self.held.remove((held, parcel))
        try:
            held.conclude(decision, record)
        finally:
            held.heartbeat.stop()

    def _send_abandoned(self, parcel: Parcel, record: Record) -> None:
        try:
            if self._is_unwanted(record):
                parcel.discard()
            else:
                finish_as(self._jobs, parcel.send(self._store, record))
                log.info("job %s: its song was uploaded, though its slot had died", record.job_id)
        finally:
            parcel.release()

    def _is_unwanted(self, record: Record) -> bool:
        (seen,) = self._jobs(calls.look([record.job_id]))
        if (entry := seen.entry) is None:
            return seen.shrunk is not None
        return entry.status.ended or entry.cancel_requested or entry.is_anothers(record)
