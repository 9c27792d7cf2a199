"""Lines of batches: kept, checked and with their results, in the store; and how each fares, read from its job's record.

All in the store but the header may be written twice, by two replicas that do the same work: the bytes are the same.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from serinette.batch import Batch, BatchHeader, BatchLine, LineOrder, LineStatus, line_job_id
from serinette.batches.repository import BatchRecord
from serinette.errors import NotFound
from serinette.job import Job, JobError
from serinette.jobs import Jobs, calls, job_of_record
from serinette.jobs.finishing import find_record
from serinette.names import (
    batch_end_key,
    batch_errors_key,
    batch_header_key,
    batch_input_key,
    batch_output_key,
    batch_prefix,
    batch_results_key,
)
from serinette.store import Store

JSONL = "application/jsonl"
# Reads of the store at a time, of jobs that are in Redis no more.
_READERS = 16
CANCELED = JobError(code="canceled", message="the batch was canceled before this line was released", retryable=True)


@dataclass(frozen=True, slots=True)
class BatchFiles:
    """All batches in one store. Every method raises StoreUnavailable when it does not answer."""

    store: Store

    def begin(self, header: BatchHeader, parts: Iterable[Path]) -> BatchHeader:
        """Write the lines and then the header; the header that is there, this one or that of an earlier request."""
        for part, path in enumerate(parts):
            self.store.put(batch_input_key(header.tenant, header.id, header.digest, part), path)
        if self.store.put_if_absent(batch_header_key(header.tenant, header.id), header.model_dump_json().encode()):
            return header
        return self.header(header.tenant, header.id)

    def header(self, tenant: str, batch_id: str) -> BatchHeader:
        """The header of a batch. Raises NotFound."""
        return BatchHeader.model_validate_json(self.store.get(batch_header_key(tenant, batch_id)))

    def orders(self, header: BatchHeader, part: int) -> list[LineOrder]:
        """The checked lines of a part."""
        text = self.store.get(batch_input_key(header.tenant, header.id, header.digest, part))
        return [LineOrder.model_validate_json(line) for line in text.splitlines()]

    def results(self, header: BatchHeader, round: int, part: int) -> list[BatchLine]:
        """What became of a part's lines in a round; no lines while that is not written."""
        try:
            text = self.store.get(batch_results_key(header.tenant, header.id, round, part))
        except NotFound:
            return []
        return [BatchLine.model_validate_json(line) for line in text.splitlines()]

    def songs_before(self, record: BatchRecord, part: int) -> dict[int, BatchLine]:
        """In a retry, the lines (from 0) of a part that an earlier round has made songs of."""
        if not record.round:
            return {}
        lines = self.results(record.header, record.round - 1, part)
        return {line.line - 1: line for line in lines if line.status is LineStatus.SUCCEEDED}

    def write_results(self, record: BatchRecord, part: int, lines: Iterable[BatchLine]) -> None:
        """Write what became of a part's lines, in their order."""
        key = batch_results_key(record.header.tenant, record.id, record.round, part)
        self.store.put(key, b"".join(map(_jsonl, lines)), JSONL)

    def write_files(self, record: BatchRecord) -> Counter[LineStatus]:
        """Put the parts together: songs, and what else became of lines; how many there are of each. In memory is a
        part at a time.

        Raises:
            RuntimeError: a part is not written.
        """
        header, counts = record.header, Counter[LineStatus]()
        with tempfile.TemporaryDirectory(prefix="serinette-batch-") as directory:
            songs, others = Path(directory) / "output", Path(directory) / "errors"
            with songs.open("wb") as output, others.open("wb") as errors:
                for part in range(header.parts):
                    lines = self.results(header, record.round, part)
                    if len(lines) != len(header.span(part)):
                        raise RuntimeError(f"batch {header.id}: part {part} of round {record.round} lacks lines")
                    for line in lines:
                        counts[line.status] += 1
                        (output if line.status is LineStatus.SUCCEEDED else errors).write(_jsonl(line))
            self.store.put(batch_output_key(header.tenant, header.id, record.round), songs, JSONL)
            self.store.put(batch_errors_key(header.tenant, header.id, record.round), others, JSONL)
        return counts

    def write_end(self, batch: Batch) -> None:
        """Write what a batch ended as, for when Redis has forgotten it."""
        self.store.put(batch_end_key(batch.tenant, batch.id), batch.model_dump_json().encode(), "application/json")

    def ended(self, tenant: str, batch_id: str) -> Batch:
        """What a batch ended as. Raises NotFound."""
        return Batch.model_validate_json(self.store.get(batch_end_key(tenant, batch_id)))

    def erase(self, tenant: str, batch_id: str) -> int:
        """Erase all of a batch but its songs; how many objects there were."""
        return self.store.delete_prefix(batch_prefix(tenant, batch_id))


def _jsonl(line: BatchLine) -> bytes:
    return line.model_dump_json(exclude_none=True).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of all batches. Every method raises RedisError and StoreUnavailable."""

    jobs: Jobs
    files: BatchFiles

    def find(self, tenant: str, job_ids: Sequence[str]) -> tuple[dict[str, Job], set[str]]:
        """Those of a tenant's jobs that are known, each whole, and those that were canceled before they were any."""
        found: dict[str, Job] = {}
        called_off: set[str] = set()
        for job_id, seen in zip(job_ids, self.jobs.joined(calls.looks(job_ids)), strict=True):
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
