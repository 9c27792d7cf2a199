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
# Of the time, a twentieth: a sweep over a million jobs takes seconds of ours and a share of Redis's one thread.
_REST = 20
# So many are mended in one round, so that lost workers are looked for in between.
_PATIENTS = 200


@dataclass(frozen=True, slots=True)
class Sighting:
    """One live job, seen from afar. Equal sightings mean that nothing has happened."""

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

    Sweeps read the lanes as they change, so a sighting may be wrong; the mender looks again, exactly, before it acts.
    """

    def __init__(self, redis: Redis, keys: Keys, grace_s: float) -> None:
        self._redis = redis
        self._keys = keys
        self._vigil: Vigil[str] = Vigil(patience_s=grace_s, step_s=grace_s)
        self._found: Iterator[str] = iter(())
        self._next_s = 0.0

    def find(self, at_s: float) -> list[Patient]:
        """Some of the suspects, at a monotonic time; the rest of them when asked again."""
        batch = list(islice(self._found, _PATIENTS))
        if not batch and at_s >= self._next_s:
            begun_s = time.monotonic()
            self._found = iter(self._vigil.look(self._suspects(), at_s))
            self._next_s = at_s + _REST * (time.monotonic() - begun_s)
            batch = list(islice(self._found, _PATIENTS))
        return [Patient(job_id) for job_id in batch]

    def _suspects(self) -> dict[str, Sighting]:
        waiting, held = self._waiting(), self._held()
        seen = (found for chunk in self._live() for found in self._look(chunk - held, waiting))
        return {job_id.decode(): sighting for job_id, sighting in seen if not sighting.well}

    def _live(self) -> Iterator[set[bytes]]:
        found = self._redis.zscan_iter(self._keys.live, count=_CHUNK)
        while chunk := {job_id for job_id, _ in islice(found, _CHUNK)}:
            yield chunk

    def _look(self, job_ids: set[bytes], waiting: set[bytes]) -> Iterator[tuple[bytes, Sighting]]:
        ids = list(job_ids)
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(RqJob.key_for(job_id.decode()))
                pipe.hmget(self._keys.ledger(job_id.decode()), ["owner", "cancel", "outcome"])
            answers = pipe.execute()
        for job_id, known, fields in zip(ids, answers[::2], answers[1::2], strict=True):
            yield job_id, Sighting(bool(known), job_id in waiting, *fields)

    def _waiting(self) -> set[bytes]:
        return {job_id for queue in lanes(self._redis) for job_id in self._list(queue.key)}

    def _list(self, key: str) -> Iterator[bytes]:
        # From the tail: ids that are popped or pushed meanwhile leave the places still to be read as they are, or
        # make one be read twice. From the head they would make some be missed.
        last = -1
        while chunk := self._redis.lrange(key, last - _CHUNK + 1, last):
            yield from chunk  # type: ignore[misc]  # redis-py: an answer or, on the asyncio client, an awaitable
            last -= _CHUNK

    def _held(self) -> set[bytes]:
        entries: list[Any] = [self._redis.zrange(queue.started_job_registry.key, 0, -1) for queue in lanes(self._redis)]
        return {StartedJobRegistry.parse_job_id(entry).encode() for found in entries for entry in found}
