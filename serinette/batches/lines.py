"""How a batch's lines fare, read from the records of their jobs: in Redis, or in the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serinette.batch import BatchLine, LineOrder, LineStatus, line_job_id
from serinette.batches.files import BatchFiles
from serinette.batches.repository import BatchRecord
from serinette.job import Job, JobError
from serinette.jobs import Jobs, Seen, calls, job_of_record
from serinette.jobs.finishing import find_record

# Records in one answer of Redis: it serves no other client while it reads them.
_CHUNK = 100
# Reads of the store at a time, of jobs that are in Redis no more.
_READERS = 16
CANCELED = JobError(code="canceled", message="the batch was canceled before this line was released", retryable=True)


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of all batches. Every method raises RedisError and StoreUnavailable."""

    jobs: Jobs
    files: BatchFiles

    def look(self, job_ids: Sequence[str]) -> Iterator[tuple[str, Seen]]:
        """Each of several jobs as Redis has it."""
        for first in range(0, len(job_ids), _CHUNK):
            ids = job_ids[first : first + _CHUNK]
            looked_at = self.jobs(calls.look(ids))
            yield from zip(ids, looked_at, strict=True)

    def find(self, tenant: str, job_ids: Sequence[str]) -> tuple[dict[str, Job], set[str]]:
        """Those of a tenant's jobs that are known, each whole, and those that were canceled before they were any."""
        found: dict[str, Job] = {}
        called_off: set[str] = set()
        for job_id, seen in self.look(job_ids):
            if seen.entry and seen.entry.called_off:
                called_off.add(job_id)
            elif seen.entry and seen.entry.tenant == tenant:
                found[job_id] = seen.entry.job()
        missing = [job_id for job_id in job_ids if job_id not in found and job_id not in called_off]
        if missing:
            with ThreadPoolExecutor(_READERS) as readers:
                records = readers.map(lambda job_id: find_record(self.files.store, tenant, job_id), missing)
                found |= {record.job_id: job_of_record(record) for record in records if record}
        return found, called_off

    def read(self, record: BatchRecord, numbers: range, orders: Mapping[int, LineOrder]) -> list[BatchLine]:
        """Some lines (from 0) of one part that is not written yet. `orders`: of the lines, as far as they are kept."""
        header = record.header
        before = self.files.songs_before(record, numbers.start // header.part_lines)
        with_job = range(min(record.released, header.total if record.canceled_from is None else record.canceled_from))
        ids = {
            number: line_job_id(header.id, number, record.round)
            for number in numbers
            if number in with_job and number not in before
        }
        jobs, called_off = self.find(header.tenant, list(ids.values()))
        lines = []
        for number in numbers:
            job_id, order = ids.get(number, ""), orders.get(number)
            if number in before:
                line = before[number]
            elif job := jobs.get(job_id):
                line = _line_of(number, job)
            elif job_id in called_off or (number < record.released and number not in with_job):
                line = BatchLine(line=number + 1, status=LineStatus.CANCELED, error=CANCELED)
            else:
                seed = order.spec.get("seed") if order else None
                line = BatchLine(line=number + 1, status=LineStatus.PENDING, seed=seed)
            lines.append(line.model_copy(update={"custom_id": order.custom_id}) if order else line)
        return lines


def _line_of(number: int, job: Job) -> BatchLine:
    return BatchLine(
        line=number + 1,
        status=LineStatus(job.status.value),
        job_id=job.id,
        seed=job.spec.seed,
        artifacts=job.result.artifacts if job.result else (),
        error=job.error,
        usage=job.usage,
    )
