"""What a tenant may do with its batches. Blocking; routes call it from threads, `Parts.batch_threads` where it may need
the store or a resolver.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from api.answering import answering
from api.batches.checking import Check, Checked, Frame, check_lines
from api.batches.reading import Line
from api.queue.admission import check_audio, check_webhook, check_words, pool_for, timeout_for
from api.settings import GatewaySettings
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
from serinette.batches.lines import Lines
from serinette.batches.objects import Shelf
from serinette.batches.record import Book, Page
from serinette.credentials import Limits
from serinette.errors import (
    Conflict,
    IdempotencyConflict,
    LaneNotAllowed,
    NotFinished,
    NotFound,
    QueueUnavailable,
    TooManyInFlight,
)
from serinette.job import Job, now
from serinette.jobs import Jobs
from serinette.presence import present
from serinette.spec import GenerationSpec
from serinette.webhook_targets import Targets

# Checks of audio that are remembered while one batch is read.
_REMEMBERED = 4_096
_RETRY_S = 60.0
# Of the longest wait for one answer of Redis, what the disk may take: the rest is for the answer's way.
_DISK_SHARE = 0.8
_ADVICE = "try again, and send a batch with an Idempotency-Key to be sure of one"


@dataclass(frozen=True, slots=True)
class Desk:
    """Batches of all tenants.

    `declared` are a tenant's limits where a file has them, `limits` those that count. Every method raises
    QueueUnavailable when Redis does not answer, and those that need the store StoreUnavailable.
    """

    book: Book
    shelf: Shelf
    jobs: Jobs
    settings: GatewaySettings
    targets: Targets
    declared: Callable[[str], Limits | None]
    limits: Callable[[str], Limits]
    part_lines: int = PART_LINES

    def create(
        self, tenant: str, lines: Iterable[Line], options: BatchOptions, idempotency_key: str | None = None
    ) -> tuple[Batch, bool]:
        """Check all of a batch and keep it; True if it is new, False if the key named one that exists.

        Raises:
            InvalidBatch: some lines are wrong; nothing was kept.
            InvalidSpec, Unsupported: its webhook leads where it may not, or this deployment delivers none.
            IdempotencyConflict: the key was used with another batch.
            LaneNotAllowed: the tenant may not use the lane of batches.
            TooManyInFlight: too many of its batches are unfinished.
        """
        with answering(_ADVICE):
            limits = self.limits(tenant)
            if limits.lanes is not None and LANE not in limits.lanes:
                allowed = ", ".join(limits.lanes)
                raise LaneNotAllowed(f"batches wait in lane {LANE}; tenant {tenant} may use {allowed}", field="lane")
            check_webhook(tenant, options.webhook, self.settings, self.targets)
            batch_id = keyed_batch_id(tenant, idempotency_key)
            with tempfile.TemporaryDirectory(prefix="serinette-batch-") as directory:
                frame = Frame(batch_id, Path(directory), self.part_lines)
                checked = check_lines(frame, options, lines, self._check(tenant, options.timeout_s))
                if (known := self.book.read(batch_id)) is not None:
                    if not known.status.ended:
                        self._sync(batch_id)
                    return _replayed(known, checked), False
                header = self._header(tenant, batch_id, options, checked)
                kept = self.shelf.begin(header, checked.parts)
            if kept.digest != checked.digest:
                raise _another_batch()
            return self._entered(kept, keyed=idempotency_key is not None)

    def known(self, tenant: str, batch_id: str) -> Batch | None:
        """One batch, as far as Redis alone can tell."""
        with answering(_ADVICE):
            return page.batch() if (page := self._page(tenant, batch_id)) else None

    def get(self, tenant: str, batch_id: str) -> Batch:
        """One batch, from Redis or, when that has forgotten it, from the store. Raises NotFound."""
        try:
            return self.known(tenant, batch_id) or self.shelf.ended(tenant, batch_id)
        except NotFound as error:
            raise _no_batch(batch_id) from error

    def newest(self, tenant: str, limit: int) -> Sequence[Batch]:
        """A tenant's batches, newest first."""
        with answering(_ADVICE):
            return [page.batch() for page in self.book.newest(tenant, limit)]

    def pause(self, tenant: str, batch_id: str) -> Batch:
        """Release no more lines; what is released goes on. Raises NotFound, Conflict."""
        return self._moved(tenant, batch_id, BatchStatus.PAUSED, BatchStatus.IN_PROGRESS)

    def resume(self, tenant: str, batch_id: str) -> Batch:
        """Release lines again. Raises NotFound, Conflict."""
        return self._moved(tenant, batch_id, BatchStatus.IN_PROGRESS, BatchStatus.PAUSED)

    def cancel(self, tenant: str, batch_id: str) -> Batch:
        """End what has not ended. A batch that is canceled already is simply answered. Raises NotFound, Conflict."""
        allowed = (BatchStatus.IN_PROGRESS, BatchStatus.PAUSED, BatchStatus.CANCELED)
        with answering(_ADVICE):
            if (page := self._page(tenant, batch_id)) and page.status is BatchStatus.CANCELED:
                return page.batch()
        return self._moved(tenant, batch_id, BatchStatus.CANCELING, *allowed[:2])

    def retry(self, tenant: str, batch_id: str) -> Batch:
        """Another round for the lines of an ended batch that have no songs. Raises NotFound, Conflict."""
        with answering(_ADVICE):
            if self._page(tenant, batch_id) is None:
                raise NotFound(f"batch {batch_id} is not known, or kept no longer where it could be retried")
            if not self.book.retry(batch_id):
                raise Conflict(
                    f"batch {batch_id} has not ended, or all of its lines have songs: there is nothing to retry"
                )
        return self.get(tenant, batch_id)

    def erase(self, tenant: str, batch_id: str) -> None:
        """Erase an ended batch; its jobs and songs stay. Raises NotFound, NotFinished."""
        batch = self.get(tenant, batch_id)
        if not batch.status.ended:
            raise NotFinished(f"batch {batch_id} is {batch.status}: cancel it, or wait for its end, then erase it")
        self.shelf.erase(tenant, batch_id)
        with answering(_ADVICE):
            self.book.forget(tenant, batch_id)

    def lines(self, tenant: str, batch_id: str, first: int, count: int) -> list[BatchLine]:
        """What became of some lines, from 0, of one part at most. Raises NotFound."""
        with answering(_ADVICE):
            page = self._page(tenant, batch_id)
            if page is None:
                raise NotFound(f"the lines of batch {batch_id} are not known; its files may be kept still")
            header = page.header
            part = first // header.part_lines
            if part >= header.parts:
                return []
            wanted = [number for number in header.span(part) if first <= number < first + count]
            is_open = part in self.book.open_parts(header.id)
            if not is_open and wanted and wanted[-1] < page.released:
                written = self.shelf.results(header, page.round, part)
                return [line for line in written if line.line - 1 in wanted]
            ends = self.book.ends(page, part) if is_open else {}
            orders = dict(zip(header.span(part), self.shelf.orders(header, part), strict=True))
            return self._lines.read(page, wanted, ends, orders)

    def _check(self, tenant: str, timeout_s: int | None) -> Check:
        workers = present(self.jobs.redis, self.settings.keys)
        find = lru_cache(_REMEMBERED)(lambda job_id: self._job(tenant, job_id))

        @lru_cache(_REMEMBERED)
        def check_sources(task: GenerationSpec) -> None:
            check_audio(tenant, task, self.shelf.store, find)

        def check(spec: GenerationSpec) -> tuple[str, int]:
            check_words(spec, self.settings.loras)
            if spec.source_audio or spec.reference_audio:
                check_sources(_only_audio(spec))
            pool = pool_for(spec.model, self.settings, workers)
            return pool, timeout_for(timeout_s, pool, self.settings)

        return check

    def _job(self, tenant: str, job_id: str) -> Job:
        (job,) = self._lines.find(tenant, [job_id])
        if job is None:
            raise NotFound(f"there is no job {job_id}")
        return job

    @property
    def _lines(self) -> Lines:
        return Lines(self.jobs, self.shelf)

    def _header(self, tenant: str, batch_id: str, options: BatchOptions, checked: Checked) -> BatchHeader:
        return BatchHeader(
            id=batch_id,
            tenant=tenant,
            name=options.name,
            labels=options.labels,
            timeout_s=options.timeout_s,
            attempts=self.settings.max_attempts,
            webhook=options.webhook,
            total=checked.total,
            part_lines=self.part_lines,
            digest=checked.digest,
            limits=self.declared(tenant),
            sources=checked.sources,
            created_at=now(),
        )

    def _entered(self, header: BatchHeader, *, keyed: bool) -> tuple[Batch, bool]:
        new = self.book.enter(header, self.settings.max_batches)
        if new is None:
            if not keyed:  # else another request may be using it; it goes with age
                self.shelf.erase(header.tenant, header.id)
            most = self.settings.max_batches
            message = f"tenant {header.tenant} has {most} unfinished batches and may have {most}; wait for one to end"
            raise TooManyInFlight(message, retry_after_s=_RETRY_S)
        self._sync(header.id)
        page = self.book.read(header.id)
        if page is None:
            raise QueueUnavailable("the batch was being erased just now; try again")
        return page.batch(), new

    def _sync(self, batch_id: str) -> None:
        if self.settings.durability == "fsync":
            self.book.sync(batch_id, int(self.settings.redis_timeout_s * 1000 * _DISK_SHARE))

    def _page(self, tenant: str, batch_id: str) -> Page | None:
        page = self.book.read(batch_id)
        return page if page and page.header.tenant == tenant else None

    def _moved(self, tenant: str, batch_id: str, to: BatchStatus, *allowed: BatchStatus) -> Batch:
        with answering(_ADVICE):
            if self._page(tenant, batch_id) is None:
                raise _no_batch(batch_id)
            status = self.book.move(batch_id, to, *allowed)
        if status is not to:
            raise Conflict(f"batch {batch_id} is {status}: only {' or '.join(allowed)} batches can be {to}")
        return self.get(tenant, batch_id)


def require_ended(batch: Batch) -> Batch:
    """The batch, whose files are written. Raises NotFinished."""
    if not batch.status.ended:
        raise NotFinished(
            f"batch {batch.id} is {batch.status}: its files come with its end; /v1/batches/{batch.id}/lines has "
            "what has become of its lines so far"
        )
    return batch


def _only_audio(spec: GenerationSpec) -> GenerationSpec:
    """What of a spec the check of its audio depends on, so that a sweep over seeds asks the store once."""
    names = ("task", "source_audio", "reference_audio", "repaint_start_s", "repaint_end_s")
    return GenerationSpec.model_construct(None, **{name: getattr(spec, name) for name in names})


def _replayed(known: Page, checked: Checked) -> Batch:
    if known.header.digest != checked.digest:
        raise _another_batch()
    return known.batch()


def _another_batch() -> IdempotencyConflict:
    message = "this Idempotency-Key was used with another batch; use a new key for a new batch"
    return IdempotencyConflict(message, field="Idempotency-Key")


def _no_batch(batch_id: str) -> NotFound:
    return NotFound(f"there is no batch {batch_id}; ended batches are kept for a limited time")
