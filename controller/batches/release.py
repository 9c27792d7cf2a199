"""Lines become jobs: in their order, as far as there is room, each once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controller.batches.plan import MOST_UNDECIDED, Rooms, Step, share, why
from serinette.batch import BATCH_LABEL, LANE, LINE_LABEL, BatchHeader, LineOrder, line_job_id
from serinette.batches.lines import CANCELED
from serinette.batches.objects import Shelf
from serinette.batches.record import Book, LineEnd, Page
from serinette.credentials import Limits
from serinette.job import JobOptions
from serinette.jobs import Call, Jobs, Submission, Submitted, calls
from serinette.spec import GenerationSpec

# Parts that are read and not through yet: of each batch under way one, until there are very many of them.
_REMEMBERED = 8


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of one turn: how many lines the cursor went over, and what held it up, in words."""

    lines: int
    held_by: str | None = None


class _Line(NamedTuple):
    number: int
    order: LineOrder


class Releaser:
    """Moves cursors. Any number of replicas may do so at once: what is submitted twice is one job."""

    def __init__(self, jobs: Jobs, book: Book, shelf: Shelf) -> None:
        self._jobs = jobs
        self._book = book
        self._shelf = shelf
        self._remembered: dict[tuple[str, int], list[LineOrder]] = {}

    def turn(self, page: Page, step: Step, rooms: Rooms, most: int) -> Turn:
        """Go over some of the lines behind the cursor, all of one part; at most so many of them become jobs.

        Raises:
            RedisError, StoreUnavailable: one of them does not answer.
            NotFound: the batch's lines were erased.
        """
        header = page.header
        part = page.released // header.part_lines
        span = range(page.released, header.span(part).stop)
        before = dict.fromkeys(self._shelf.songs_before(page, part), LineEnd.BEFORE)
        if page.restored and (written := self._shelf.results(header, page.round, part)):
            ends = {line.line - 1: LineEnd(line.status.value) for line in written if line.line - 1 in span} | before
            return Turn(len(span) if self._book.advance(page, part, span, _within(ends, span)) else 0)
        if step is Step.CANCEL:
            # Another that died, or stands still, before it moved the cursor may have submitted so many, or do so yet.
            near = self.call_off(page, [number for number in span[:MOST_UNDECIDED] if number not in before])
            ends = near | dict.fromkeys(span[MOST_UNDECIDED:], LineEnd.CALLED_OFF) | before
            return Turn(len(span) if self._book.advance(page, part, span, _within(ends, span)) else 0)
        over, ends, held_by = self._release(page, span[:most], before, rooms)
        moved = bool(over) and self._book.advance(page, part, over, _within(ends | before, over))
        return Turn(len(over) if moved else 0, held_by)

    def again(self, page: Page, numbers: Sequence[int]) -> None:
        """Submit lines once more whose jobs are nowhere: Redis has lost them."""
        limits = self._limits(page.header)
        self._jobs.many([self._submit(page, line, limits) for line in self._lines(page, numbers)])

    def call_off(self, page: Page, numbers: Sequence[int]) -> dict[int, LineEnd]:
        """Of lines of a canceled batch those that end without a job; the others have one, and it is canceled."""
        header, ttl_s = page.header, self._book.ttl_s
        ids = [line_job_id(header.id, number, page.round) for number in numbers]
        called_off = self._jobs.many([calls.call_off(job_id, header.tenant, CANCELED, ttl_s) for job_id in ids])
        return {number: LineEnd.CALLED_OFF for number, done in zip(numbers, called_off, strict=True) if done}

    def _release(
        self, page: Page, span: range, before: dict[int, LineEnd], rooms: Rooms
    ) -> tuple[range, dict[int, LineEnd], str | None]:
        """The lines that are released, those of them that have ended, and what held up the rest."""
        lines: list[_Line] = []
        over = span
        for line in self._lines(page, [number for number in span if number not in before]):
            if line.order.pool not in rooms.waiting:
                rooms.waiting[line.order.pool] = self._waiting(line.order.pool)
            if not rooms.free(line.order.pool):
                over = range(span.start, line.number)
                break
            rooms.take(line.order.pool)
            lines.append(line)
        limits = self._limits(page.header)
        answers = self._jobs.many([self._submit(page, line, limits) for line in lines]) if lines else []
        ends: dict[int, LineEnd] = {}
        for line, answer in zip(lines, answers, strict=True):
            if answer.refused:
                return range(span.start, line.number), ends, why(answer.refused.what)
            if known := answer.known or answer.ended:  # before a death, by another replica, or restored
                rooms.give_back(line.order.pool)
                if known.status.ended:
                    ends[line.number] = LineEnd(known.status.value)
        return over, ends, None

    def _submit(self, page: Page, line: _Line, limits: Limits | None) -> Call[Submitted]:
        header, order = page.header, line.order
        labels = {**header.labels, BATCH_LABEL: header.id, LINE_LABEL: str(line.number + 1)}
        submission = Submission(
            id=line_job_id(header.id, line.number, page.round),
            tenant=header.tenant,
            pool=order.pool,
            work=GenerationSpec.from_wire(order.spec),
            options=JobOptions(lane=LANE, labels=labels),
            digest=order.digest,
            timeout_s=order.timeout_s,
            max_attempts=header.attempts,
            ttl_s=self._book.ttl_s,
            batch=header.id,
        )
        return calls.submit(submission, limits=limits)

    def _waiting(self, pool: str) -> int:
        return int(self._jobs.redis.zcard(self._book.keys.waiting(pool, LANE)))

    def _limits(self, header: BatchHeader) -> Limits | None:
        limits = header.limits
        if limits is None and (text := self._jobs.redis.hget(self._book.keys.tenants, header.tenant)):
            limits = Limits.model_validate_json(text)
        return share(limits) if limits else None

    def _lines(self, page: Page, numbers: Iterable[int]) -> Iterator[_Line]:
        for number in numbers:
            part, place = divmod(number, page.header.part_lines)
            yield _Line(number, self._orders(page.header, part)[place])

    def _orders(self, header: BatchHeader, part: int) -> list[LineOrder]:
        key = (header.id, part)
        if key not in self._remembered:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[key] = self._shelf.orders(header, part)
        return self._remembered[key]


def _within(ends: dict[int, LineEnd], span: range) -> dict[int, LineEnd]:
    return {number: end for number, end in ends.items() if number in span}
