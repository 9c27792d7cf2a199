"""Ends of released lines, taken from the books that decide them, and parts written to the store once all have ended."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from api.batches.book import Book, Page, parse_lines
from api.batches.shelf import Shelf
from api.maintenance.batches.release import Releaser
from api.maintenance.mend import Mender, Patient
from api.queue.reader import Reader
from api.queue.sighting import Sighting, job_of_record
from serinette.batch import BatchLine, BatchStatus, line_job_id, line_status
from serinette.errors import NotFound
from serinette.job import Job, JobStatus, Record
from serinette.ledger import Ledger
from serinette.names import record_key

log = logging.getLogger(__name__)

# Jobs read in one round trip.
_CHUNK = 250


@dataclass(frozen=True, slots=True)
class _Look:
    """One released line's job from afar. All None: its ledger is nowhere."""

    number: int
    job_id: str
    tenant: bytes | None
    outcome: bytes | None
    owner: bytes | None
    cancel: bytes | None


class Gatherer:
    """Gathers ends. An end is entered once, however many replicas find it, and counted as it is entered."""

    def __init__(self, redis: Redis, ledger: Ledger, book: Book, shelf: Shelf, releaser: Releaser) -> None:
        self._redis = redis
        self._ledger = ledger
        self._book = book
        self._shelf = shelf
        self._releaser = releaser
        self._reader = Reader(redis, ledger)
        self._mender = Mender(redis, ledger, shelf.store)

    def gather(self, page: Page) -> int:
        """Gather what has ended and write the parts that are through; how many lines are being sung.

        Raises:
            RedisError, StoreUnavailable: what was gathered stays gathered.
        """
        running = 0
        for part in self._book.open_parts(page.header.id):
            running += self._gather_part(page, part)
        return running

    def _gather_part(self, page: Page, part: int) -> int:
        span = page.header.span(part)
        done = self._book.ended_numbers(page, part)
        running = 0
        under_way = [number for number in span if number < page.released and number not in done]
        for first in range(0, len(under_way), _CHUNK):
            looks = self._look(page, under_way[first : first + _CHUNK])
            running += sum(look.outcome is None and look.owner is not None for look in looks)
            self._enter(page, part, looks)
            if page.status is BatchStatus.CANCELING:
                self._cancel([look for look in looks if look.tenant and look.outcome is None])
        lines = self._book.ended_lines(page, part)
        if len(lines) == len(span):
            self._close(page, part, lines)
        return running

    def _enter(self, page: Page, part: int, looks: Sequence[_Look]) -> None:
        over = [look for look in looks if look.outcome is not None or look.tenant is None]
        sightings = self._reader.see([look.job_id for look in over])
        lost: list[int] = []
        ended: list[BatchLine] = []
        for look, sighting in zip(over, sightings, strict=True):
            job = self._job(page.header.tenant, look.job_id, sighting)
            if job is not None and job.status.ended:
                ended.append(_line(look.number, job))
            elif look.outcome is not None:
                ended.append(self._of_ledger(look))
            elif job is None:
                lost.append(look.number)
        if lost and page.status is BatchStatus.CANCELING:
            ended += self._releaser.call_off(page, lost)
            lost = []
        if ended:
            self._book.gather(page, part, ended)
        if lost:
            log.warning("batch=%s: jobs of %d lines are nowhere and are released again", page.header.id, len(lost))
            self._releaser.again(page, lost)

    def _look(self, page: Page, numbers: Iterable[int]) -> list[_Look]:
        ids = {number: line_job_id(page.header.id, number, page.round) for number in numbers}
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids.values():
                pipe.hmget(self._ledger.keys.ledger(job_id), ["tenant", "outcome", "owner", "cancel"])
            found: list[Any] = pipe.execute()
        return [_Look(number, job_id, *each) for (number, job_id), each in zip(ids.items(), found, strict=True)]

    def _job(self, tenant: str, job_id: str, sighting: Sighting | None) -> Job | None:
        """The job as Redis has it, or the store where Redis has forgotten its song."""
        if sighting is not None and (sighting.result or sighting.status is not JobStatus.SUCCEEDED):
            return sighting.job()
        try:
            record = Record.model_validate_json(self._shelf.store.get(record_key(tenant, job_id)))
        except NotFound:
            return sighting.job() if sighting else None
        return job_of_record(record)

    def _of_ledger(self, look: _Look) -> BatchLine:
        """An end that nothing but the ledger remembers."""
        entry = self._ledger.read(look.job_id)
        status = line_status(entry.outcome or JobStatus.FAILED)
        return BatchLine(line=look.number + 1, status=status, job_id=look.job_id, error=entry.error, usage=entry.usage)

    def _cancel(self, looks: Iterable[_Look]) -> None:
        for look in looks:
            if look.cancel is None:
                self._ledger.request_cancel(look.job_id)
            if look.owner is None:
                self._mender.mend(Patient(look.job_id))

    def _close(self, page: Page, part: int, lines: dict[int, bytes]) -> None:
        try:
            names = [order.custom_id for order in self._shelf.orders(page.header, part)]
        except NotFound:  # erased by hand: the results are more than nothing
            names = [None] * len(lines)
        ordered = parse_lines(lines[number] for number in page.header.span(part))
        named = [line.model_copy(update={"custom_id": name}) for line, name in zip(ordered, names, strict=True)]
        self._shelf.keep_results(page, part, named)
        self._book.close(page, part)


def _line(number: int, job: Job) -> BatchLine:
    return BatchLine(
        line=number + 1,
        status=line_status(job.status),
        job_id=job.id,
        seed=job.spec.seed,
        artifacts=job.result.artifacts if job.result else (),
        error=job.error,
        usage=job.usage,
    )
