"""Lines become jobs: in their order, as far as there is room, each once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from controller.batches.plan import MOST_UNDECIDED, Action, LaneRoom, share, why
from serinette.batch import BATCH_LABEL, LANE, LINE_LABEL, BatchHeader, LineOrder, LineStatus, line_job_id
from serinette.batches.lines import CANCELED, BatchFiles
from serinette.batches.repository import BatchRecord, BatchRepository
from serinette.credentials import Limits
from serinette.job import JobOptions
from serinette.jobs import Call, Submission, Submitted, calls
from serinette.spec import GenerationSpec

# Parts that are read and not through yet: of each batch under way one, until there are very many of them.
_REMEMBERED = 8


class Releaser:
    """Moves cursors. Any number of replicas may do so at once: what is submitted twice is one job."""

    def __init__(self, repository: BatchRepository, files: BatchFiles) -> None:
        self._jobs = repository.jobs
        self._repository = repository
        self._files = files
        self._remembered: dict[tuple[str, int], list[LineOrder]] = {}

    def turn(self, record: BatchRecord, action: Action, room: LaneRoom, most: int) -> tuple[int, str | None]:
        """Go over some of the lines behind the cursor, all of one part; at most so many of them become jobs. How many
        lines the cursor went over, and what held it up, in words.

        Raises:
            RedisError, StoreUnavailable: one of them does not answer.
            NotFound: the batch's lines were erased.
        """
        part = record.released // record.header.part_lines
        span = range(record.released, record.header.span(part).stop)
        before = self._files.songs_before(record, part)
        if record.restored and (written := self._files.results(record.header, record.round, part)):
            lines = ((line.line - 1, line.status) for line in written)
            ended = Counter(status for number, status in lines if number in span and number not in before)
            return len(span) if self._repository.advance(record, span.stop, ended, written=True) else 0, None
        left = [number for number in span if number not in before]
        if action is Action.CANCEL:
            # Another replica that died, or stands still, before it moved the cursor may have submitted so many lines,
            # or do so yet.
            first = record.released + MOST_UNDECIDED if record.canceled_from is None else record.canceled_from
            near = [number for number in left if number < first]
            canceled = {LineStatus.CANCELED: len(left) - len(near) + len(self.call_off(record, near))}
            moved = self._repository.advance(record, span.stop, canceled, canceled_from=first)
            return len(span) if moved else 0, None
        stop, ended, held_by = self._release(record, span[:most], left, room)
        moved = stop > span.start and self._repository.advance(record, stop, ended)
        return stop - span.start if moved else 0, held_by

    def again(self, record: BatchRecord, numbers: Sequence[int]) -> None:
        """Submit lines once more; those that have a job are live again, as they should be."""
        limits = self._limits(record.header)
        self._jobs.many([self._submit(record, *line, limits) for line in self._lines(record, numbers)])

    def call_off(self, record: BatchRecord, numbers: Sequence[int]) -> list[int]:
        """Of lines of a canceled batch those that end without a job; the others have one, and it is canceled."""
        ids = [line_job_id(record.id, number, record.round) for number in numbers]
        tenant, ttl_s = record.header.tenant, self._repository.ttl_s
        called_off = self._jobs.many([calls.call_off(job_id, tenant, CANCELED, ttl_s) for job_id in ids])
        return [number for number, done in zip(numbers, called_off, strict=True) if done]

    def _release(
        self, record: BatchRecord, span: range, left: Sequence[int], room: LaneRoom
    ) -> tuple[int, Counter[LineStatus], str | None]:
        """The line that stays the next one, how many before it have ended uncounted, and what held up the rest."""
        lines: list[tuple[int, LineOrder]] = []
        stop = span.stop
        for number, order in self._lines(record, (number for number in left if number in span)):
            pool = order.pool
            if pool not in room.waiting:
                room.waiting[pool] = int(self._jobs.redis.zcard(self._repository.keys.waiting(pool, LANE)))
            if not room.free(pool):
                stop = number
                break
            room.waiting[pool] += 1
            lines.append((number, order))
        limits = self._limits(record.header)
        answers = self._jobs.many([self._submit(record, *line, limits) for line in lines])
        ended: Counter[LineStatus] = Counter()
        for (number, order), answer in zip(lines, answers, strict=True):
            if answer.refused:
                return number, ended, why(answer.refused.what)
            if known := answer.known or answer.ended:  # before a death, by another replica, or restored
                room.waiting[order.pool] -= 1
                if record.restored and known.status.ended:
                    ended[LineStatus(known.status.value)] += 1
        return stop, ended, None

    def _submit(self, record: BatchRecord, number: int, order: LineOrder, limits: Limits | None) -> Call[Submitted]:
        header = record.header
        labels = {**header.labels, BATCH_LABEL: header.id, LINE_LABEL: str(number + 1)}
        submission = Submission(
            id=line_job_id(header.id, number, record.round),
            tenant=header.tenant,
            pool=order.pool,
            work=GenerationSpec.from_wire(order.spec),
            options=JobOptions(lane=LANE, labels=labels),
            digest=order.digest,
            timeout_s=order.timeout_s,
            max_attempts=header.attempts,
            ttl_s=self._repository.ttl_s,
            batch=(header.id, number),
        )
        return calls.submit(submission, limits=limits)

    def _limits(self, header: BatchHeader) -> Limits | None:
        limits = header.limits
        if limits is None and (text := self._jobs.redis.hget(self._repository.keys.tenants, header.tenant)):
            limits = Limits.model_validate_json(text)
        return share(limits) if limits else None

    def _lines(self, record: BatchRecord, numbers: Iterable[int]) -> Iterator[tuple[int, LineOrder]]:
        for number in numbers:
            part, place = divmod(number, record.header.part_lines)
            yield number, self._orders(record.header, part)[place]

    def _orders(self, header: BatchHeader, part: int) -> list[LineOrder]:
        key = (header.id, part)
        if key not in self._remembered:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[key] = self._files.orders(header, part)
        return self._remembered[key]
