"""What a tenant may do with its batches. Blocking; routes call it from BatchThreads."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from api.batches.validation import Check, Checked, Line, LineChecker
from api.outages import no_disk, queue_errors
from api.queue.admission import check_audio, check_lora_and_codes, check_webhook, pool_for, timeout_for
from api.settings import GatewaySettings
from api.turns import Threads
from serinette.batch import (
    LANE,
    PART_LINES,
    Batch,
    BatchHeader,
    BatchLine,
    BatchOptions,
    BatchStatus,
    keyed_batch_id,
)
from serinette.batches.lines import BatchFiles, Lines
from serinette.batches.repository import BatchRecord, BatchRepository
from serinette.credentials import Limits
from serinette.errors import (
    Conflict,
    IdempotencyConflict,
    LaneNotAllowed,
    NotFinished,
    NotFound,
    QueueUnavailable,
    TooManyInFlight,
    Unavailable,
)
from serinette.job import Job, now
from serinette.jobs.calls import BatchEntry
from serinette.presence import present
from serinette.spec import GenerationSpec
from serinette.webhook_targets import Targets

# Checks of audio that are remembered while one batch is read.
_REMEMBERED = 4_096
_RETRY_S = 60.0
_BUSY = partial(Unavailable, "too many batches are being read and written at the moment; try again")
_ADVICE = "try again, and send a batch with an Idempotency-Key to be sure of one"


@dataclass(frozen=True, slots=True)
class BatchThreads:
    """Threads for calls of BatchService, apart by what may hold them up; tenants take turns.

    `queue`: for calls that need Redis alone. `store`: the store too. `checks`: creating one, which reads up to 100,000
    lines and competes with the event loop for the interpreter.
    """

    queue: Threads = field(default_factory=lambda: Threads(8, 4, _BUSY))
    store: Threads = field(default_factory=lambda: Threads(8, 4, _BUSY))
    checks: Threads = field(default_factory=lambda: Threads(4, 1, _BUSY))


@dataclass(frozen=True, slots=True)
class BatchService:
    """Batches of all tenants.

    `declared` are a tenant's limits where a file has them, `limits` those that count. Every method raises
    QueueUnavailable when Redis does not answer, and those that need the store StoreUnavailable.
    """

    repository: BatchRepository
    files: BatchFiles
    settings: GatewaySettings
    targets: Targets
    declared: Callable[[str], Limits | None]
    limits: Callable[[str], Limits]
    part_lines: int = PART_LINES

    def create(
        self, tenant: str, lines: Iterable[Line], options: BatchOptions, idempotency_key: str | None = None
    ) -> tuple[Batch, bool]:
        """Check all of a batch and keep it; True if it is new, False if the key named a batch that exists.

        Raises:
            InvalidBatch: some lines are wrong; nothing was kept.
            InvalidSpec, Unsupported: its webhook leads where it may not, or this deployment delivers none.
            IdempotencyConflict: the key was used with another batch.
            LaneNotAllowed: the tenant may not use the lane of batches.
            TooManyInFlight: too many of its batches are unfinished.
        """
        with queue_errors(_ADVICE):
            limits = self.limits(tenant)
            if limits.lanes is not None and LANE not in limits.lanes:
                allowed = ", ".join(limits.lanes)
                raise LaneNotAllowed(f"batches wait in lane {LANE}; tenant {tenant} may use {allowed}", field="lane")
            check_webhook(tenant, options.webhook, self.settings, self.targets)
            secret = self.settings.idempotency_secret
            batch_id = keyed_batch_id(tenant, idempotency_key, secret.get_secret_value() if secret else None)
            with tempfile.TemporaryDirectory(prefix="serinette-batch-") as directory:
                check = self._check(tenant, options.timeout_s)
                checked = LineChecker(batch_id, Path(directory), self.part_lines, check)(options, lines)
                known = self.repository.read(batch_id)
                if known and not known.status.ended:
                    self._sync(batch_id)
                    known = self.repository.read(batch_id)  # a server that restarted meanwhile may have lost it
                ours = self._header(tenant, batch_id, options, checked)
                header = known.header if known else self.files.begin(ours, checked.parts)
            if header.digest != checked.digest:
                message = "this Idempotency-Key was used with another batch; use a new key for a new batch"
                raise IdempotencyConflict(message, field="Idempotency-Key")
            return (known.batch(), False) if known else self._entered(header, keyed=idempotency_key is not None)

    def known(self, tenant: str, batch_id: str) -> Batch | None:
        """One batch, as far as Redis alone knows it."""
        with queue_errors(_ADVICE):
            return record.batch() if (record := self._record(tenant, batch_id)) else None

    def get(self, tenant: str, batch_id: str) -> Batch:
        """One batch, from Redis or, when that has forgotten it, from the store. Raises NotFound."""
        try:
            return self.known(tenant, batch_id) or self.files.ended(tenant, batch_id)
        except NotFound as error:
            raise _no_batch(batch_id) from error

    def newest(self, tenant: str, limit: int) -> Sequence[Batch]:
        """A tenant's batches, newest first."""
        with queue_errors(_ADVICE):
            return [record.batch() for record in self.repository.newest(tenant, limit)]

    def pause(self, tenant: str, batch_id: str) -> Batch:
        """Release no more lines; what is released goes on. Raises NotFound, Conflict."""
        return self._moved(tenant, batch_id, BatchStatus.PAUSED, BatchStatus.IN_PROGRESS)

    def resume(self, tenant: str, batch_id: str) -> Batch:
        """Release lines again. Raises NotFound, Conflict."""
        return self._moved(tenant, batch_id, BatchStatus.IN_PROGRESS, BatchStatus.PAUSED)

    def cancel(self, tenant: str, batch_id: str) -> Batch:
        """End what has not ended. A batch that is canceled already is simply answered. Raises NotFound, Conflict."""
        batch = self.known(tenant, batch_id)
        if batch and batch.status is BatchStatus.CANCELED:
            return batch
        return self._moved(tenant, batch_id, BatchStatus.CANCELING, BatchStatus.IN_PROGRESS, BatchStatus.PAUSED)

    def retry(self, tenant: str, batch_id: str) -> Batch:
        """Another round for the lines of an ended batch that have no songs. Raises NotFound, Conflict."""
        with queue_errors(_ADVICE):
            record = self._record(tenant, batch_id)
            if record is None:
                raise NotFound(f"batch {batch_id} is not known, or kept no longer where it could be retried")
            left = record.status.ended and record.failed + record.canceled
            if not left or not (self.repository.retry(record) or self._in_round(record.round + 1, tenant, batch_id)):
                raise Conflict(
                    f"batch {batch_id} has not ended, or all of its lines have songs: there is nothing to retry"
                )
        return self.get(tenant, batch_id)

    def erase(self, tenant: str, batch_id: str) -> None:
        """Erase an ended batch; its jobs and songs stay. Raises NotFound, NotFinished."""
        batch = self.get(tenant, batch_id)
        if not batch.status.ended:
            raise NotFinished(f"batch {batch_id} is {batch.status}: cancel it, or wait for its end, then erase it")
        self.files.erase(tenant, batch_id)
        with queue_errors(_ADVICE):
            self.repository.forget(batch_id)

    def lines(self, tenant: str, batch_id: str, first: int, count: int) -> list[BatchLine]:
        """What became of some lines, from 0, of one part at most. Raises NotFound."""
        with queue_errors(_ADVICE):
            record = self._record(tenant, batch_id)
            if record is None:
                raise NotFound(f"the lines of batch {batch_id} are not known; its files may be kept still")
            header, part = record.header, first // record.header.part_lines
            wanted = range(first, min(first + count, header.span(part).stop))
            if part >= header.parts or not wanted:
                return []
            if wanted.stop <= record.released and part not in self.repository.under_way(record)[0]:
                written = self.files.results(header, record.round, part)
                return [line for line in written if line.line - 1 in wanted]
            orders = dict(zip(header.span(part), self.files.orders(header, part), strict=True))
            return self._lines.read(record, wanted, orders)

    def _check(self, tenant: str, timeout_s: int | None) -> Check:
        workers = present(self.repository.jobs.redis, self.settings.keys)
        find = lru_cache(_REMEMBERED)(lambda job_id: self._job(tenant, job_id))

        @lru_cache(_REMEMBERED)
        def check_sources(task: GenerationSpec) -> None:
            check_audio(tenant, task, self.files.store, find)

        def check(spec: GenerationSpec) -> tuple[str, int]:
            check_lora_and_codes(spec, self.settings.loras)
            if spec.source_audio or spec.reference_audio:
                check_sources(_only_audio(spec))
            pool = pool_for(spec.model, self.settings, workers)
            return pool, timeout_for(timeout_s, pool, self.settings)

        return check

    def _job(self, tenant: str, job_id: str) -> Job:
        found, _ = self._lines.find(tenant, [job_id])
        if job_id not in found:
            raise NotFound(f"there is no job {job_id}")
        return found[job_id]

    @property
    def _lines(self) -> Lines:
        return Lines(self.repository.jobs, self.files)

    def _header(self, tenant: str, batch_id: str, options: BatchOptions, checked: Checked) -> BatchHeader:
        return BatchHeader(
            id=batch_id,
            tenant=tenant,
            attempts=self.settings.max_attempts,
            total=checked.total,
            part_lines=self.part_lines,
            digest=checked.digest,
            limits=self.declared(tenant),
            sources=checked.sources,
            created_at=now(),
            **dict(options),
        )

    def _entered(self, header: BatchHeader, *, keyed: bool) -> tuple[Batch, bool]:
        entered = self.repository.enter(header, self.settings.max_batches, fsync=self.settings.durability == "fsync")
        if entered in {BatchEntry.FULL, BatchEntry.NO_AOF} and not keyed:
            # With a key another request may be using it; it goes with age.
            self.files.erase(header.tenant, header.id)
        if entered is BatchEntry.NO_AOF:
            raise no_disk()
        if entered is BatchEntry.FULL:
            most = self.settings.max_batches
            message = f"tenant {header.tenant} has {most} unfinished batches and may have {most}; wait for one to end"
            raise TooManyInFlight(message, retry_after_s=_RETRY_S)
        self._sync(header.id)
        record = self.repository.read(header.id)
        if record is None:
            raise QueueUnavailable("the batch was erased just now, or the queue's server lost it; send it again")
        return record.batch(), entered is BatchEntry.NEW

    def _sync(self, batch_id: str) -> None:
        if wait_ms := self.settings.disk_wait_ms:
            self.repository.sync(batch_id, wait_ms)

    def _in_round(self, round_: int, tenant: str, batch_id: str) -> bool:
        """Whether a round has begun: by this call, whose answer was lost and which was then sent again, or another."""
        record = self._record(tenant, batch_id)
        return record is not None and record.round == round_ and not record.status.ended

    def _record(self, tenant: str, batch_id: str) -> BatchRecord | None:
        record = self.repository.read(batch_id)
        return record if record and record.header.tenant == tenant else None

    def _moved(self, tenant: str, batch_id: str, to: BatchStatus, *allowed: BatchStatus) -> Batch:
        with queue_errors(_ADVICE):
            while (record := self._record(tenant, batch_id)) and record.status is not to:
                if record.status not in allowed:
                    message = f"batch {batch_id} is {record.status}: only {' or '.join(allowed)} batches can be {to}"
                    raise Conflict(message)
                self.repository.move(record, to)  # unless it was moved meanwhile: then look again
        if record is None:
            raise _no_batch(batch_id)
        return record.batch()


def _only_audio(spec: GenerationSpec) -> GenerationSpec:
    """What of a spec the check of its audio depends on, so that a sweep over seeds asks the store once."""
    names = ("task", "source_audio", "reference_audio", "repaint_start_s", "repaint_end_s")
    return GenerationSpec.model_construct(None, **{name: getattr(spec, name) for name in names})


def _no_batch(batch_id: str) -> NotFound:
    return NotFound(f"there is no batch {batch_id}; ended batches are kept for a limited time")
