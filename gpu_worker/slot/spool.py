"""Finished songs that the store could not take, on bounded local disk, until it can.

A parcel is a directory: the songs by index, then `job.json`, which makes it whole. Whoever works on it holds its lock
as long as it lives; a whole parcel that nobody holds was left by a slot that died, and any slot of the pod sends it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gpu_worker.process_setup import lock_directory
from gpu_worker.settings import WorkerSettings
from serinette.job import Record
from serinette.jobs.finishing import put_record
from serinette.store import Store

log = logging.getLogger(__name__)

_RECORD = "job.json"


class Spooled(Exception):
    """The song lies in the spool: its attempt goes on, and its slot may sing another."""

    def __init__(self, parcel: Parcel) -> None:
        super().__init__(f"waits for the store in {parcel.directory}")
        self.parcel = parcel


@dataclass(frozen=True, slots=True)
class Parcel:
    """One attempt's songs and record, held by this process."""

    directory: Path
    lock: int
    spool: Spool

    def add(self, index: int, data: bytes) -> bool:
        """Keep one song; False if the disk has no room for it."""
        return not self.spool.full and self._write(str(index), data)

    def seal(self, record: Record) -> bool:
        """Make it whole: from now on it may outlive this process. False if the disk has no room for it."""
        return self._write(_RECORD, record.model_dump_json().encode())

    @property
    def record(self) -> Record | None:
        """What it is; None as long as it is not whole."""
        try:
            return Record.model_validate_json((self.directory / _RECORD).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def send(self, store: Store, record: Record) -> Record:
        """Bring it to the store and discard it; the record that counts, which may be another attempt's.

        Raises:
            StoreUnavailable: nothing is lost; to be called again.
        """
        kept = [artifact for artifact in record.artifacts if (self.directory / str(artifact.index)).exists()]
        for artifact in kept:
            store.put(artifact.key, self.directory / str(artifact.index), artifact.content_type)
        winner = put_record(store, record)
        if winner.attempt is None or record.attempt is None or winner.attempt.id != record.attempt.id:
            for artifact in record.artifacts:
                store.delete(artifact.key)
        self.discard()
        return winner

    def discard(self) -> None:
        """Erase it."""
        (self.directory / _RECORD).unlink(missing_ok=True)  # first: half a parcel must not look whole
        shutil.rmtree(self.directory, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let go of it, for another slot to send."""
        with suppress(OSError):
            os.close(self.lock)

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
        """The spool of `settings`; None if it is to be none. What is meant for another store lies in another one."""
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

    def abandoned(self) -> Iterator[Parcel]:
        """Whole parcels of slots that died, held by us from now on. Others that they left are erased."""
        for directory in sorted(self.directory.glob("*")):
            with suppress(OSError):
                if (lock := lock_directory(directory)) is None:
                    continue
                parcel = Parcel(directory, lock, self)
                if parcel.record is None:
                    parcel.discard()
                else:
                    yield parcel
