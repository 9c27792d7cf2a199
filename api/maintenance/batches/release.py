"""Lines become jobs: in their order, as far as there is room, each once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from redis import Redis
from rq.exceptions import DuplicateJobError
from rq.job import Job as RqJob

from api.batches.book import Book, Page
from api.batches.shelf import Shelf
from api.maintenance.batches.plan import TURN, Rooms, Step, share, why
from api.queue.bounds import Bounds
from api.queue.entry import enqueue, meta_of
from serinette.batch import (
    BATCH_LABEL,
    LANE,
    LINE_LABEL,
    BatchHeader,
    BatchLine,
    LineOrder,
    LineStatus,
    line_job_id,
)
from serinette.credentials import Limits
from serinette.job import JobError, JobOptions, now
from serinette.ledger import Ledger
from serinette.spec import GenerationSpec

# Parts that are read and not through yet: of each batch under way one, until there are very many of them.
_REMEMBERED = 8
# Bounds of lanes are the gateway's; ours is the room that the plan finds.
_NO_BOUND = 2**31
_CANCELED = JobError(code="canceled", message="the batch was canceled before this line was released", retryable=True)


@dataclass(frozen=True, slots=True)
class _Keeping:
    max_attempts: int
    retention_s: int


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of one turn: how many lines the cursor went over, and what held it up, in words."""

    lines: int
    held_by: str | None = None


class Releaser:
    """Moves cursors. Any number of replicas may do so at once: what is released twice is one job."""

    def __init__(self, redis: Redis, ledger: Ledger, book: Book, shelf: Shelf) -> None:
        self._redis = redis
        self._ledger = ledger
        self._book = book
        self._shelf = shelf
        self._remembered: dict[tuple[str, int], list[LineOrder]] = {}

    def turn(self, page: Page, step: Step, rooms: Rooms) -> Turn:
        """Go over some of the lines behind the cursor, all of one part.

        Raises:
            RedisError, StoreUnavailable: one of them does not answer.
            NotFound: the batch's lines were erased.
        """
        header = page.header
        part = page.released // header.part_lines
        span = range(page.released, header.span(part).stop)
        before = self._sung_before(page, part)
        sung = [before[number] for number in span if number in before]
        if page.restored and (written := self._shelf.results(header, page.round, part)):
            ended = [line for line in written if line.line - 1 in span and line.line - 1 not in before]
            return Turn(len(span) if self._book.advance(page, part, span, ended, sung) else 0)
        if step is Step.CANCEL:
            # One who died, or stands still, on this side of the cursor may have released that many, or do so yet.
            near = self.call_off(page, [number for number in span[:TURN] if number not in before])
            ended = [*near, *(_canceled(number) for number in span[TURN:] if number not in before)]
            moved = self._book.advance(page, part, span, ended, sung)
            return Turn(len(span) if moved else 0)
        span = span[:TURN]
        orders = self._orders(header, part)
        after, held_by = self._release(page, span, before, orders[span.start % header.part_lines :], rooms)
        over = range(span.start, after)
        if not over or not self._book.advance(page, part, over, [], [before[it] for it in over if it in before]):
            return Turn(0, held_by)
        return Turn(len(over), held_by)

    def again(self, page: Page, numbers: Sequence[int]) -> None:
        """Release lines once more whose jobs are nowhere: Redis has lost them."""
        header = page.header
        for number in numbers:
            part, place = divmod(number, header.part_lines)
            self._submit(page, number, self._orders(header, part)[place], self._bounds(header))

    def call_off(self, page: Page, numbers: Iterable[int]) -> list[BatchLine]:
        """Of lines of a canceled batch those that end without a job; the others have one."""
        header, called_off = page.header, []
        for number in numbers:
            job_id = line_job_id(header.id, number, page.round)
            if self._ledger.call_off(job_id, header.tenant, RqJob.key_for(job_id), _CANCELED):
                called_off.append(_canceled(number))
        return called_off

    def _release(
        self, page: Page, span: range, before: dict[int, BatchLine], orders: Sequence[LineOrder], rooms: Rooms
    ) -> tuple[int, str | None]:
        """The line up to which all are released, and what held up the rest."""
        known = self._known(page, span)
        bounds = self._bounds(page.header)
        for number, order in zip(span, orders, strict=False):
            if number in before or number in known:
                continue
            if order.pool not in rooms.waiting:
                rooms.waiting[order.pool] = self._waiting(order.pool)
            if not rooms.free(order.pool):
                return number, None
            if refusal := self._submit(page, number, order, bounds):
                return number, why(refusal)
            rooms.take(order.pool)
        return span.stop, None

    def _submit(self, page: Page, number: int, order: LineOrder, bounds: Bounds) -> str | None:
        """Put one line's job into its lane; why not, if a bound forbids it."""
        header, job_id = page.header, line_job_id(page.header.id, number, page.round)
        refusal = bounds.admit(header.tenant, job_id, order.pool, LANE)
        if refusal:
            return refusal.what
        labels = {**header.labels, BATCH_LABEL: header.id, LINE_LABEL: str(number + 1)}
        spec = GenerationSpec.from_wire(order.spec)
        options = JobOptions(lane=LANE, labels=labels)
        meta = meta_of(header.tenant, order.pool, spec, options, {})
        meta |= {"digest": order.digest, "timeout_s": order.timeout_s}
        self._ledger.open(job_id, header.tenant, now(), order.pool)
        try:
            enqueue(self._redis, job_id, spec, meta, _Keeping(header.attempts, self._ledger.ttl_s))
        except DuplicateJobError:  # another replica was here just now
            if self._ledger.read(job_id).outcome:  # and a worker too
                self._forget_live(header.tenant, job_id)
        finally:
            bounds.entered(job_id, order.pool, LANE)
        return None

    def _forget_live(self, tenant: str, job_id: str) -> None:
        for book in (self._ledger.keys.live, self._ledger.keys.in_flight(tenant)):
            self._redis.zrem(book, job_id)

    def _known(self, page: Page, span: range) -> set[int]:
        """Lines of the span whose jobs RQ has: released before a death, or by another replica."""
        with self._redis.pipeline(transaction=False) as pipe:
            for number in span:
                pipe.exists(RqJob.key_for(line_job_id(page.header.id, number, page.round)))
            return {number for number, known in zip(span, pipe.execute(), strict=True) if known}

    def _waiting(self, pool: str) -> int:
        return int(self._redis.llen(self._ledger.keys.waiting(pool, LANE)))

    def _sung_before(self, page: Page, part: int) -> dict[int, BatchLine]:
        """In a retry, the lines of a part that an earlier round has sung."""
        if not page.round:
            return {}
        lines = self._shelf.results(page.header, page.round - 1, part)
        return {line.line - 1: line for line in lines if line.status is LineStatus.SUCCEEDED}

    def _bounds(self, header: BatchHeader) -> Bounds:
        limits = header.limits
        if limits is None and (text := self._redis.hget(self._ledger.keys.tenants, header.tenant)):
            limits = Limits.model_validate_json(text)
        told = share(limits) if limits else None
        return Bounds(self._redis, self._ledger.keys, _NO_BOUND, lambda _: told)

    def _orders(self, header: BatchHeader, part: int) -> list[LineOrder]:
        key = (header.id, part)
        if key not in self._remembered:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[key] = self._shelf.orders(header, part)
        return self._remembered[key]


def _canceled(number: int) -> BatchLine:
    return BatchLine(line=number + 1, status=LineStatus.CANCELED, error=_CANCELED)
