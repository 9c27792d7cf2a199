"""Live events of jobs: any number of listeners share one blocking connection to Redis."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from redis import asyncio as redis_asyncio
from redis.exceptions import RedisError

from api.auth.keyring import CallerCheck
from api.outages import queue_errors
from api.turns import Turns
from serinette.errors import InvalidSpec, Limited
from serinette.job import ENDED
from serinette.names import Keys
from serinette.views import JobEvent

log = logging.getLogger(__name__)

START = "0-0"
# States of a record after which no event follows; None: there is no record.
OVER = ENDED | {None}

# A newly watched stream joins the blocking read when the current one returns.
_BLOCK_MS = 200
# Listeners that were not woken read the stream themselves this often.
_RECHECK_S = 5.0
# Listeners that only wait for the end rely on the shared read, and check the job at every third timeout.
_WAITS_A_LOOK = 3
_AFTER_TROUBLE_S = 0.5
_READ_COUNT = 100
# Events of one job that are kept for its listeners; one further behind reads for itself.
_KEPT_EVENTS = 256
# Event streams of one tenant that are open at once, and of all; each step of a job wakes all that follow it.
STREAMS_OF_TENANT = 200
_STREAMS = 2_000
# Requests of one tenant that wait for a job's end at once, and of all; each is a connection and a listener.
WAITS_OF_TENANT = 200
_WAITS = 2_000
_TOO_MANY_STREAMS = partial(
    Limited,
    f"too many event streams are open, of one tenant {STREAMS_OF_TENANT} at most; end some, or poll",
    retry_after_s=_RECHECK_S,
)
_TOO_MANY_WAITS = partial(
    Limited,
    f"too many requests wait for jobs, of one tenant {WAITS_OF_TENANT} at most; ask without `wait`, or later",
    retry_after_s=_RECHECK_S,
)
_EVENT_ID = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")


def checked_event_id(text: str) -> str:
    """A stream id as Redis writes it.

    Raises:
        InvalidSpec: it is not one.
    """
    if not _EVENT_ID.fullmatch(text) or any(int(part) >= 2**64 for part in text.split("-")):
        raise InvalidSpec(
            "last_event_id: not the id of an event; give one as it came, or leave it out", field="last_event_id"
        )
    return text


@dataclass(slots=True)
class _Watch:
    """One watched stream, read once for all of its listeners: its last events, and the listeners to wake."""

    since: str  # all events after this one are in `events`, or were pushed out of it, or are still to come
    cursor: str
    listeners: set[asyncio.Event] = field(default_factory=set)
    events: deque[JobEvent] = field(default_factory=lambda: deque(maxlen=_KEPT_EVENTS))
    ended: bool = False  # the terminal event was read, or the record is over
    looked_s: float = 0.0  # when the record was last looked at

    def add(self, entries: Iterable[tuple[str, Mapping[str, str]]]) -> None:
        """Take events that were read behind the cursor."""
        for event_id, fields in entries:
            if _order(event_id) <= _order(self.cursor):
                continue
            if len(self.events) == _KEPT_EVENTS:
                self.since = self.events[0].id
            self.cursor = event_id
            self.events.append(_event(event_id, fields))
            self.ended = self.ended or fields["type"] in ENDED

    def after(self, place: str) -> list[JobEvent] | None:
        """Events after `place`; None if some of them are no longer kept here."""
        if _order(place) < _order(self.since):
            return None
        return [event for event in self.events if _order(event.id) > _order(place)]


def _order(event_id: str) -> tuple[int, int]:
    left, _, right = event_id.partition("-")
    return int(left), int(right or 0)


def _event(event_id: str, fields: Mapping[str, str]) -> JobEvent:
    return JobEvent(id=event_id, type=fields["type"], data=json.loads(fields["data"]))


class JobEvents:
    """Events of jobs. `run` must be running for listeners to be woken in time.

    Each listener goes on from its own position, so that a slow one delays no other and misses no event. Methods raise
    QueueUnavailable when Redis does not answer.
    """

    def __init__(self, redis: redis_asyncio.Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._watches: dict[str, _Watch] = {}
        self._wanted = asyncio.Event()
        self._closing = False
        self.streams = Turns(_STREAMS, STREAMS_OF_TENANT, _TOO_MANY_STREAMS, most_waiting=0)
        self.waits = Turns(_WAITS, WAITS_OF_TENANT, _TOO_MANY_WAITS, most_waiting=0)

    async def run(self) -> None:
        """Read what is watched, and wake its listeners; runs until `close`, or canceled."""
        # `_closing` is checked too, because redis-py may swallow a cancellation during its blocking read.
        while not self._closing:
            if not self._watches:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            cursors: dict[Any, Any] = {stream: watch.cursor for stream, watch in self._watches.items()}
            try:
                grown: Any = await self._redis.xread(cursors, block=_BLOCK_MS, count=_READ_COUNT)
            except RedisError as error:
                log.warning("cannot read events, trying again: %s", error)
                self._wake(self._watches)
                await asyncio.sleep(_AFTER_TROUBLE_S)
                continue
            for stream, entries in grown:
                if watch := self._watches.get(stream):
                    watch.add(entries)
            self._wake(stream for stream, _ in grown)

    def close(self) -> None:
        """End every wait and every stream soon, because the gateway drains."""
        self._closing = True
        self._wanted.set()
        self._wake(self._watches)

    @property
    def closing(self) -> bool:
        """Whether the gateway is draining."""
        return self._closing

    async def last_ids(self, job_id: str) -> tuple[str, str]:
        """Ids of the last event and of the one before it; START where there is no event."""
        with queue_errors():
            entries: Any = await self._redis.xrevrange(self._keys.events(job_id), count=2)
        ids = [entry_id for entry_id, _ in entries] + [START, START]
        return ids[0], ids[1]

    async def follow(self, job_id: str, after: str, caller_check: CallerCheck) -> AsyncGenerator[JobEvent]:
        """Events after `after` as they happen; ends with the terminal event, when the gateway drains, or when the
        caller's key is revoked.
        """
        place = after
        with self._watching(job_id, after) as (watch, changed):
            while not self._closing and await caller_check.holds():
                changed.clear()
                over, found = await self._next(job_id, watch, place)
                for event in found:
                    place = event.id
                    yield event
                if (found and found[-1].type in ENDED) or (over and not found):
                    return
                if not found:
                    await _pause(changed, _RECHECK_S)

    async def wait_for_end(self, job_id: str, timeout_s: float, caller_check: CallerCheck) -> bool:
        """Wait for the job's end, which may be in the past; False on timeout, when the gateway drains, or when the
        caller's key is revoked. Costs one read, however many events there are.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        over, last = await self._over(job_id)
        with self._watching(job_id, last) as (watch, changed):
            for number in itertools.count(1):
                if over or watch.ended:
                    return True
                left_s = deadline - loop.time()
                if left_s <= 0 or self._closing or not await caller_check.holds():
                    return False
                changed.clear()
                await _pause(changed, min(left_s, _RECHECK_S))
                if not changed.is_set() and number % _WAITS_A_LOOK == 0:
                    over, _ = await self._over(job_id)
        return False

    async def _next(self, job_id: str, watch: _Watch, place: str) -> tuple[bool, list[JobEvent]]:
        """Whether the job has ended (or is unknown), and events after `place`: from what was read for all listeners,
        or else from Redis.
        """
        found = watch.after(place)
        if found is None:  # this listener is behind all others
            over, entries = await self._read(job_id, place)
            return over, [_event(event_id, fields) for event_id, fields in entries]
        now_s = asyncio.get_running_loop().time()
        if found or watch.ended or now_s < watch.looked_s + _RECHECK_S:
            return watch.ended, found
        watch.looked_s = now_s  # the first listener's read, or one in case no wake-up comes
        over, entries = await self._read(job_id, watch.cursor)
        watch.add(entries)
        watch.ended = watch.ended or (over and len(entries) < _READ_COUNT)
        self._wake([self._keys.events(job_id)])
        return watch.ended, watch.after(place) or []

    async def _read(self, job_id: str, after: str) -> tuple[bool, list[tuple[str, dict[str, str]]]]:
        """Whether the job has ended (or is unknown), and its events after `after`, read atomically."""
        with queue_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hget(self._keys.job(job_id), "state")
                pipe.xread({self._keys.events(job_id): after}, count=_READ_COUNT)
                state, found = await pipe.execute()
        return state in OVER, found[0][1] if found else []

    async def _over(self, job_id: str) -> tuple[bool, str]:
        """Whether the job has ended (or is unknown), and its last event, read atomically."""
        with queue_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hget(self._keys.job(job_id), "state")
                pipe.xrevrange(self._keys.events(job_id), count=1)
                state, found = await pipe.execute()
        return state in OVER, found[0][0] if found else START

    @contextmanager
    def _watching(self, job_id: str, after: str) -> Iterator[tuple[_Watch, asyncio.Event]]:
        stream, changed = self._keys.events(job_id), asyncio.Event()
        watch = self._watches.setdefault(stream, _Watch(after, after))
        watch.listeners.add(changed)
        self._wanted.set()
        try:
            yield watch, changed
        finally:
            watch.listeners.discard(changed)
            if not watch.listeners and self._watches.get(stream) is watch:
                del self._watches[stream]

    def _wake(self, streams: Iterable[str]) -> None:
        for stream in streams:
            if watch := self._watches.get(stream):
                for changed in watch.listeners:
                    changed.set()


async def _pause(changed: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await changed.wait()


_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE | re.ASCII)


def preferred_wait_s(prefer: str | None, max_wait_s: float) -> float | None:
    """Seconds that the Prefer header asks to wait (RFC 7240), bounded; None without a valid `wait`."""
    match = _WAIT.search(prefer or "")
    return None if match is None else min(float(match[1]), max_wait_s)
