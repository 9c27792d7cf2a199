"""Ends of released lines, taken from the records of their jobs, and parts written to the store once all have ended."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from controller.batches.release import Releaser
from serinette.batch import LINE_LABEL, BatchStatus, LineOrder, line_job_id
from serinette.batches.lines import CHUNK, Lines
from serinette.batches.objects import Shelf
from serinette.batches.record import Book, Ends, LineEnd, Page
from serinette.errors import NotFound
from serinette.jobs import Jobs, Seen, calls
from serinette.jobs.finishing import find_record

log = logging.getLogger(__name__)

_Each = TypeVar("_Each")


class Gatherer:
    """Gathers ends. An end is counted once, however many replicas find it.

    The transitions put the ids of ended jobs into a set, which is drained. That every released line has a job is looked
    up beside it, one part a round: nothing but a loss of single keys makes it untrue.
    """

    def __init__(self, jobs: Jobs, book: Book, shelf: Shelf, releaser: Releaser) -> None:
        self._jobs = jobs
        self._book = book
        self._shelf = shelf
        self._releaser = releaser
        self._lines = Lines(jobs, shelf)
        self._searched: dict[str, int] = {}

    def gather(self, page: Page) -> None:
        """Gather what has ended, and write the parts that are through.

        Raises:
            RedisError, StoreUnavailable: what was gathered stays gathered.
        """
        parts = self._book.open_parts(page.header.id)
        if page.status is BatchStatus.CANCELING:
            for part in parts:
                self._cancel(page, part)
        self._drain(page)
        self._search(page, parts)
        for part in parts:
            self._close(page, part)

    def _drain(self, page: Page) -> None:
        for ids in _chunks(self._book.ended_jobs(page.header.id)):
            found: dict[int, LineEnd] = {}
            entered = []
            looked_at = self._jobs(calls.look(ids))
            for job_id, seen in zip(ids, looked_at, strict=True):
                number = _number_of(seen)
                if number is not None and job_id == line_job_id(page.header.id, number, page.round):
                    if number >= page.released:  # the cursor has not moved over it
                        continue
                    found |= _end_of(number, seen)
                entered.append(job_id)
            self._enter(page, found)
            if entered:
                self._book.drained(page.header.id, entered)

    def _search(self, page: Page, parts: Sequence[int]) -> None:
        """Look at all released lines of the next of the open parts."""
        if not parts:
            return
        last = self._searched.get(page.header.id, -1)
        part = next((each for each in parts if each > last), parts[0])
        self._searched[page.header.id] = part
        found: dict[int, LineEnd] = {}
        lost: list[int] = []
        for numbers in _chunks(self._under_way(page, part)):
            looked_at = self._jobs(calls.look(_ids(page, numbers)))
            for number, seen in zip(numbers, looked_at, strict=True):
                found |= _end_of(number, seen)
                if seen.entry is None and seen.shrunk is None:
                    lost.append(number)
        self._enter(page, found)
        self._enter_lost(page, lost)

    def _cancel(self, page: Page, part: int) -> None:
        for numbers in _chunks(self._under_way(page, part)):
            tenant = page.header.tenant
            states = self._jobs.many([calls.cancel(job_id, tenant) for job_id in _ids(page, numbers)])
            lost = [number for number, state in zip(numbers, states, strict=True) if state in {"unknown", "called_off"}]
            self._enter_lost(page, lost)

    def _enter_lost(self, page: Page, numbers: Sequence[int]) -> None:
        """Lines that Redis knows no job of: the store may know how it ended."""
        found: dict[int, LineEnd] = {}
        for number, job_id in zip(numbers, _ids(page, numbers), strict=True):
            if record := find_record(self._shelf.store, page.header.tenant, job_id):
                found[number] = LineEnd(record.status.value)
        lost = [number for number in numbers if number not in found]
        if lost and page.status is BatchStatus.CANCELING:
            found |= self._releaser.call_off(page, lost)
        elif lost:
            log.warning("batch=%s: jobs of %d lines are nowhere and are released again", page.header.id, len(lost))
            self._releaser.again(page, lost)
        self._enter(page, found)

    def _enter(self, page: Page, ends: Ends) -> None:
        parts: defaultdict[int, dict[int, LineEnd]] = defaultdict(dict)
        for number, end in ends.items():
            parts[number // page.header.part_lines][number] = end
        for part, of_part in parts.items():
            self._book.gather(page, part, of_part)

    def _close(self, page: Page, part: int) -> None:
        header, ends = page.header, self._book.ends(page, part)
        span = header.span(part)
        if len(ends) < len(span):
            return
        written = page.restored and len(self._shelf.results(header, page.round, part)) == len(span)
        if not written:
            orders: Mapping[int, LineOrder] = {}
            try:
                orders = dict(zip(span, self._shelf.orders(header, part), strict=True))
            except NotFound:  # erased by hand: the results are more than nothing
                log.warning("batch=%s: the lines of part %d are not in the store any more", header.id, part)
            self._shelf.keep_results(page, part, self._lines.read(page, span, ends, orders))
        self._book.close(page, part)

    def _under_way(self, page: Page, part: int) -> list[int]:
        ends = self._book.ends(page, part)
        return [number for number in page.header.span(part) if number < page.released and number not in ends]


def _ids(page: Page, numbers: Sequence[int]) -> list[str]:
    return [line_job_id(page.header.id, number, page.round) for number in numbers]


def _number_of(seen: Seen) -> int | None:
    """The line of a job, from 0."""
    known = seen.entry or seen.shrunk
    line = known.labels.get(LINE_LABEL) if known else None
    return int(line) - 1 if line else None


def _end_of(number: int, seen: Seen) -> dict[int, LineEnd]:
    known = seen.entry or seen.shrunk
    if known is None or not known.status.ended:
        return {}
    called_off = seen.entry is not None and seen.entry.called_off
    return {number: LineEnd.CALLED_OFF if called_off else LineEnd(known.status.value)}


def _chunks(items: Sequence[_Each]) -> Iterator[Sequence[_Each]]:
    for first in range(0, len(items), CHUNK):
        yield items[first : first + CHUNK]
