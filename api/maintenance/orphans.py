"""Finds the unfinished jobs that nobody would ever take up again: a sweep over the live set."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from redis import Redis
from rq.job import Job as RqJob
from rq.registry import StartedJobRegistry

from api.maintenance.lanes import lanes
from api.maintenance.mend import Patient
from api.maintenance.vigil import Vigil
from serinette.names import Keys

_CHUNK = 1_000
# A sweep over a million jobs takes half a minute of ours and seconds of Redis's one thread. It goes on for so long in
# one round, so that lost workers are looked for in between, and rests for so many times as long as it worked.
_SLICE_S = 0.5
_REST = 20
# Mended in one round, for the same reason.
_PATIENTS = 200


@dataclass(frozen=True, slots=True)
class Glimpse:
    """One live job, seen from afar. Equal glimpses mean that nothing has happened."""

    known: bool  # RQ has its hash
    waiting: bool  # its id is in some lane's list
    owner: bytes | None = None
    cancel: bytes | None = None
    outcome: bytes | None = None

    @property
    def well(self) -> bool:
        """A job that waits for its first or next claim, and nothing else."""
        return self.known and self.waiting and not (self.owner or self.cancel or self.outcome)


class Orphans:
    """Tells which live jobs neither wait well nor run, unchanged for `grace_s`: more than a claim or a submit takes.

    Sweeps read the lanes as they change, so a glimpse may be wrong; the mender looks again, exactly, before it acts.
    """

    def __init__(self, redis: Redis, keys: Keys, grace_s: float, slice_s: float = _SLICE_S) -> None:
        self._redis = redis
        self._keys = keys
        self._slice_s = slice_s
        self._vigil: Vigil[str] = Vigil(patience_s=grace_s, step_s=grace_s)
        self._sweep = self._chunks()
        self._suspects: dict[str, Glimpse] = {}
        self._worked_s = 0.0
        self._next_s = 0.0
        self._ripe: Iterator[str] = iter(())

    def find(self, at_s: float) -> list[Patient]:
        """Some of the suspects, at a monotonic time; the rest of them when asked again."""
        batch = list(islice(self._ripe, _PATIENTS))
        if not batch and at_s >= self._next_s and self._swept():
            self._ripe = iter(self._vigil.look(self._suspects, at_s))
            self._next_s = at_s + _REST * self._worked_s
            self._sweep, self._suspects, self._worked_s = self._chunks(), {}, 0.0
            batch = list(islice(self._ripe, _PATIENTS))
        return [Patient(job_id) for job_id in batch]

    def _swept(self) -> bool:
        """Go on with the sweep for a while; whether it is through."""
        begun_s = time.monotonic()
        for glimpses in self._sweep:
            self._suspects |= {job_id: seen for job_id, seen in glimpses.items() if not seen.well}
            if time.monotonic() - begun_s > self._slice_s:
                self._worked_s += time.monotonic() - begun_s
                return False
        self._worked_s += time.monotonic() - begun_s
        return True

    def _chunks(self) -> Iterator[dict[str, Glimpse]]:
        waiting: set[bytes] = set()
        for queue in lanes(self._redis):
            for chunk in self._list(queue.key):
                waiting.update(chunk)
                yield {}
        held = self._held()
        for ids in self._live():
            yield self._look(ids - held, waiting)

    def _live(self) -> Iterator[set[bytes]]:
        found = self._redis.zscan_iter(self._keys.live, count=_CHUNK)
        while chunk := {job_id for job_id, _ in islice(found, _CHUNK)}:
            yield chunk

    def _look(self, job_ids: set[bytes], waiting: set[bytes]) -> dict[str, Glimpse]:
        ids = list(job_ids)
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(RqJob.key_for(job_id.decode()))
                pipe.hmget(self._keys.ledger(job_id.decode()), ["owner", "cancel", "outcome"])
            answers = pipe.execute()
        return {
            job_id.decode(): Glimpse(bool(known), job_id in waiting, *fields)
            for job_id, known, fields in zip(ids, answers[::2], answers[1::2], strict=True)
        }

    def _list(self, key: str) -> Iterator[list[bytes]]:
        # From the tail: ids that are popped or pushed meanwhile leave the places still to be read as they are, or
        # make one be read twice. From the head they would make some be missed.
        last = -1
        while chunk := self._redis.lrange(key, last - _CHUNK + 1, last):
            yield chunk  # type: ignore[misc]  # redis-py: an answer or, on the asyncio client, an awaitable
            last -= _CHUNK

    def _held(self) -> set[bytes]:
        entries: list[Any] = [self._redis.zrange(queue.started_job_registry.key, 0, -1) for queue in lanes(self._redis)]
        return {StartedJobRegistry.parse_job_id(entry).encode() for found in entries for entry in found}
