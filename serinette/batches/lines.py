"""What has become of a batch's lines, read from the records of their jobs: in Redis, or in the store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serinette.batch import BatchLine, LineOrder, LineStatus, line_job_id, line_status
from serinette.batches.objects import Shelf
from serinette.batches.record import Ends, LineEnd, Page
from serinette.job import Job, JobError
from serinette.jobs import Jobs, calls, job_of_record
from serinette.jobs.finishing import find_record

# Records in one answer of Redis: it serves no other client while it reads them.
CHUNK = 100
# Reads of the store at a time, of jobs that are in Redis no more.
_READERS = 16
CANCELED = JobError(code="canceled", message="the batch was canceled before this line was released", retryable=True)


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of all batches. Every method raises RedisError and StoreUnavailable."""

    jobs: Jobs
    shelf: Shelf

    def find(self, tenant: str, job_ids: Sequence[str]) -> list[Job | None]:
        """A tenant's jobs, each whole; None of one that is not known."""
        found: dict[str, Job] = {}
        for first in range(0, len(job_ids), CHUNK):
            ids = job_ids[first : first + CHUNK]
            looked_at = self.jobs(calls.look(ids))
            for job_id, seen in zip(ids, looked_at, strict=True):
                if seen.entry and seen.entry.tenant == tenant and not seen.entry.called_off:
                    found[job_id] = seen.entry.job()
        missing = [job_id for job_id in job_ids if job_id not in found]
        if missing:
            with ThreadPoolExecutor(_READERS) as readers:
                records = readers.map(lambda job_id: find_record(self.shelf.store, tenant, job_id), missing)
                found |= {record.job_id: job_of_record(record) for record in records if record}
        return [found.get(job_id) for job_id in job_ids]

    def read(self, page: Page, numbers: Iterable[int], ends: Ends, orders: Mapping[int, LineOrder]) -> list[BatchLine]:
        """Some lines (from 0) of an open part or one that is not released. `orders`: of the lines, as far as they are
        kept.
        """
        header = page.header
        numbers = list(numbers)
        before = self.shelf.songs_before(page, numbers[0] // header.part_lines) if numbers else {}
        ids = {
            number: line_job_id(header.id, number, page.round)
            for number in numbers
            if number < page.released and number not in before and ends.get(number) is not LineEnd.CALLED_OFF
        }
        jobs = dict(zip(ids, self.find(header.tenant, list(ids.values())), strict=True))
        lines = []
        for number in numbers:
            line = before.get(number) or _line(number, ends.get(number), jobs.get(number), ids.get(number))
            if order := orders.get(number):
                seed = order.spec.get("seed") if line.status is LineStatus.PENDING else line.seed
                line = line.model_copy(update={"custom_id": order.custom_id, "seed": seed})
            lines.append(line)
        return lines


def _line(number: int, end: LineEnd | None, job: Job | None, job_id: str | None) -> BatchLine:
    if end is LineEnd.CALLED_OFF:
        return BatchLine(line=number + 1, status=LineStatus.CANCELED, error=CANCELED)
    if job is None:  # of one that has ended, it was kept for too long since
        status = LineStatus.SUCCEEDED if end is LineEnd.BEFORE else LineStatus(end or LineStatus.PENDING)
        return BatchLine(line=number + 1, status=status, job_id=job_id if end else None)
    return BatchLine(
        line=number + 1,
        status=line_status(job.status),
        job_id=job.id,
        seed=job.spec.seed,
        artifacts=job.result.artifacts if job.result else (),
        error=job.error,
        usage=job.usage,
    )
