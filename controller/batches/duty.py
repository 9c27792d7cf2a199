"""One round over all batches under way: gather, release in turns, write what is through."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from redis import Redis
from redis.exceptions import RedisError

from controller.batches.gather import Gatherer
from controller.batches.plan import Rooms, Step, backlog, next_step, turn_lines
from controller.batches.release import Releaser
from controller.settings import ControllerSettings
from serinette.batches.objects import Shelf
from serinette.batches.record import Book, Page
from serinette.errors import NotFound, StoreUnavailable
from serinette.job import now
from serinette.jobs import Jobs
from serinette.store import Store

log = logging.getLogger(__name__)

# A round works for so long and leaves the rest to the next one, so that a batch of any size is gathered, and can be
# paused or canceled, while another is released.
_ROUND_S = 5.0
_Answer = TypeVar("_Answer")
_LOST = "its lines are not in the store any more: cancel it"


@dataclass
class _Under:
    """A batch in this round."""

    page: Page
    held_by: str | None = None


class Batches:
    """The duty. Safe beside another replica that does it too."""

    def __init__(self, redis: Redis, store: Store, settings: ControllerSettings) -> None:
        self._settings = settings
        jobs = Jobs(redis, settings.keys.prefix)
        self._book = Book(redis, settings.keys, settings.retention_s)
        self._shelf = Shelf(store)
        self._releaser = Releaser(jobs, self._book, self._shelf)
        self._gatherer = Gatherer(jobs, self._book, self._shelf, self._releaser)
        self._unreadable: set[str] = set()

    def __call__(self) -> None:
        """One round. Raises RedisError or StoreUnavailable when one of them does not answer."""
        until_s = time.monotonic() + _ROUND_S
        looked_at = [self._guarded(batch_id, partial(self._look, batch_id)) for batch_id in self._book.unfinished()]
        under_way = [under for under in looked_at if under]
        self._release(under_way, until_s)
        for under in under_way:
            self._guarded(under.page.header.id, partial(self._finish, under))

    def _guarded(self, batch_id: str, act: Callable[[], _Answer]) -> _Answer | None:
        """One batch that cannot be read must not hold up the others."""
        try:
            return act()
        except (RedisError, StoreUnavailable):
            raise
        except Exception:
            if batch_id not in self._unreadable:
                log.exception("cannot go on with batch=%s", batch_id)
            self._unreadable.add(batch_id)
            return None

    def _look(self, batch_id: str) -> _Under | None:
        page = self._book.read(batch_id)
        if page is None:
            self._book.drop(batch_id)
            return None
        self._gatherer.gather(page)
        return _Under(self._book.read(batch_id) or page)

    def _release(self, under_way: list[_Under], until_s: float) -> None:
        """In turns, the oldest first, until the lanes are full enough or no batch has lines left to release."""
        rooms = Rooms(self._settings.pools, self._settings.batch_backlog)
        active = under_way
        while active and time.monotonic() < until_s:
            lines = turn_lines(len(active))
            active = [
                under
                for under in active
                if self._guarded(under.page.header.id, partial(self._turn, under, rooms, lines))
            ]

    def _turn(self, under: _Under, rooms: Rooms, lines: int) -> bool:
        """Whether the batch may have another turn in this round."""
        page, batch_id = under.page, under.page.header.id
        most = backlog(rooms.pools, self._settings.pool, rooms.least)
        step = next_step(page.status, page.header.total - page.released, len(self._book.open_parts(batch_id)), most)
        if step is Step.REST:
            return False
        try:
            turned = self._releaser.turn(page, step, rooms, lines)
        except NotFound:
            under.held_by = _LOST
            return False
        under.page, under.held_by = self._book.read(batch_id) or page, turned.held_by
        return turned.lines > 0 and turned.held_by is None

    def _finish(self, under: _Under) -> None:
        batch_id = under.page.header.id
        self._book.waits_for(batch_id, under.held_by)
        if not self._book.finalize(batch_id):
            return
        page = self._book.read(batch_id)
        if page is None or page.ends_as is None:
            return
        ended_at = now()
        self._shelf.keep_files(page)
        self._shelf.keep_end(page.batch().model_copy(update={"status": page.ends_as, "ended_at": ended_at}))
        if self._book.end(page, ended_at):
            log.info("batch=%s %s lines=%d completed=%d", batch_id, page.ends_as, page.header.total, page.completed)
