"""One round over all batches under way: write the parts that are through, release in turns, end what is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

from redis import Redis
from redis.exceptions import RedisError

from controller.batches.plan import Action, LaneRoom, backlog, ended_parts, next_action, next_lines, turn_lines
from controller.batches.release import Releaser
from controller.settings import ControllerSettings
from serinette.batch import BatchStatus, LineOrder, LineStatus, line_job_id
from serinette.batches.lines import BatchFiles, Lines
from serinette.batches.repository import BatchRecord, BatchRepository
from serinette.errors import Gone, NotFound, StoreUnavailable
from serinette.job import JobError, now
from serinette.jobs import Jobs, calls
from serinette.jobs.finishing import find_record
from serinette.store import Store

log = logging.getLogger(__name__)

# A round works for so long and leaves the rest to the next one, so that a batch of any size is written, and can be
# paused or canceled, while another is released.
_ROUND_S = 5.0
_Answer = TypeVar("_Answer")
_LOST = "its lines are not in the store any more: cancel it"
# Of a line whose job ended so long before the rest of its part that nothing of it is kept any more.
_GONE = {
    "status": LineStatus.FAILED,
    "error": JobError(code=Gone.code, message="its job ended and was deleted since: retry the batch", retryable=True),
}


@dataclass
class _UnderWay:
    """A batch in this round."""

    record: BatchRecord
    held_by: str | None = None


class Batches:
    """The duty. Safe beside another replica that does it too."""

    def __init__(self, redis: Redis, store: Store, settings: ControllerSettings) -> None:
        self._settings = settings
        self._jobs = Jobs(redis, settings.keys.prefix)
        self._repository = BatchRepository(self._jobs, settings.keys, settings.retention_s)
        self._files = BatchFiles(store)
        self._lines = Lines(self._jobs, self._files)
        self._releaser = Releaser(self._repository, self._files)
        self._checked: dict[str, int] = {}  # of each batch, the last line whose job was looked up
        self._unreadable: set[str] = set()

    def __call__(self) -> None:
        """One round. Raises RedisError or StoreUnavailable when one of them does not answer."""
        until_s = time.monotonic() + _ROUND_S
        looked_at = [self._guarded(each, partial(self._look, each)) for each in self._repository.unfinished()]
        under_way = [each for each in looked_at if each]
        self._release(under_way, until_s)
        for each in under_way:
            self._guarded(each.record.id, partial(self._finish, each))

    def _guarded(self, batch_id: str, act: Callable[[], _Answer]) -> _Answer | None:
        """One batch that cannot be read must not hold up the others."""
        try:
            return act()
        except (RedisError, StoreUnavailable):
            raise
        except Exception:
            if batch_id not in self._unreadable:
                log.exception("batch=%s cannot be processed", batch_id)
            self._unreadable.add(batch_id)
            return None

    def _look(self, batch_id: str) -> _UnderWay | None:
        record = self._repository.read(batch_id)
        if record is None:
            self._repository.forget(batch_id)
            return None
        _, live = self._repository.under_way(record)
        if record.status is BatchStatus.CANCELING:
            self._jobs.many([calls.cancel(job_id, record.header.tenant) for job_id in live.values()])
        self._check(record, live)
        parts, live = self._repository.under_way(record)
        for part in ended_parts(record.header, record.released, parts, live):
            self._write(record, part)
        return _UnderWay(self._repository.read(batch_id) or record)

    def _check(self, record: BatchRecord, live: Mapping[int, str]) -> None:
        """See that jobs which have not ended are in Redis, some lines a round: only a loss of keys makes it untrue."""
        numbers = next_lines(live, self._checked.get(record.id, -1), record.header.part_lines)
        self._checked[record.id] = numbers[-1] if numbers else -1
        lost = []
        looked_at = self._jobs.joined(calls.looks([live[number] for number in numbers]))
        for number, seen in zip(numbers, looked_at, strict=True):
            known = seen.entry or seen.shrunk
            if known is None:
                lost.append(number)
            elif known.status.ended:  # restored from the store
                self._repository.settle(record, number, live[number], known.status)
        self._recover(record, lost)

    def _recover(self, record: BatchRecord, numbers: Sequence[int]) -> None:
        """Lines that are not known to have ended, nor to be live: the store may know how their jobs ended."""
        lost = []
        for number in numbers:
            job_id = line_job_id(record.id, number, record.round)
            if found := find_record(self._files.store, record.header.tenant, job_id):
                self._repository.settle(record, number, job_id, found.status)
            else:
                lost.append(number)
        if lost and record.status is BatchStatus.CANCELING:
            for number in self._releaser.call_off(record, lost):
                job_id = line_job_id(record.id, number, record.round)
                self._repository.settle(record, number, job_id, LineStatus.CANCELED)
        elif lost:
            log.warning("batch=%s: jobs of %d lines are missing and are submitted again", record.id, len(lost))
            self._releaser.again(record, lost)

    def _write(self, record: BatchRecord, part: int) -> None:
        header, orders = record.header, dict[int, LineOrder]()
        span = header.span(part)
        try:
            orders = dict(zip(span, self._files.orders(header, part), strict=True))
        except NotFound:  # erased by hand: the results are more than nothing
            log.warning("batch=%s: the lines of part %d are not in the store any more", record.id, part)
        lines = self._lines.read(record, span, orders)
        if record.header.created_at + timedelta(seconds=self._settings.retention_s) < now():
            lines = [line if line.status is not LineStatus.PENDING else line.model_copy(update=_GONE) for line in lines]
        if left := [line.line - 1 for line in lines if not line.status.ended]:
            self._recover(record, left)
            return
        self._files.write_results(record, part, lines)
        self._repository.close(record, part)

    def _release(self, under_way: list[_UnderWay], until_s: float) -> None:
        """In turns, the oldest first, until the lanes are full enough or no batch has lines left to release."""
        room = LaneRoom(self._settings.pools, self._settings.batch_backlog)
        active = under_way
        while active and time.monotonic() < until_s:
            turn = partial(self._turn, room=room, lines=turn_lines(len(active)))
            active = [each for each in active if self._guarded(each.record.id, partial(turn, each))]

    def _turn(self, under_way: _UnderWay, room: LaneRoom, lines: int) -> bool:
        """Whether the batch may have another turn in this round."""
        record = under_way.record
        most = backlog(room.pools, self._settings.pool, room.least)
        action = next_action(record.status, record.header.total - record.released, record.open_parts, most)
        if action is Action.REST:
            return False
        try:
            moved, held_by = self._releaser.turn(record, action, room, lines)
        except NotFound:
            under_way.held_by = _LOST
            return False
        under_way.record, under_way.held_by = self._repository.read(record.id) or record, held_by
        return moved > 0 and held_by is None

    def _finish(self, under_way: _UnderWay) -> None:
        record = under_way.record
        self._repository.waits_for(record, under_way.held_by)
        if not record.through:
            return
        if record.status is not BatchStatus.FINALIZING:
            self._repository.finalize(record)
            record = self._repository.read(record.id) or record
        if record.status is not BatchStatus.FINALIZING:  # it was moved meanwhile
            return
        ended = record.ended_with(self._files.write_files(record), now())
        self._files.write_end(ended.batch())
        if self._repository.end(record, ended):
            self._checked.pop(record.id, None)
            log.info("batch=%s %s lines=%d completed=%d", record.id, ended.status, record.header.total, ended.completed)
