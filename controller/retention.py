"""Deletes songs, uploads and batches that are older than they are kept for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import groupby, islice
from threading import Event
from typing import Any

from redis import Redis

from serinette.batches.lines import BatchFiles
from serinette.batches.repository import BatchRepository
from serinette.errors import NotFound
from serinette.job import now
from serinette.jobs import Jobs, calls
from serinette.names import Keys
from serinette.store import Store, StoredObject

log = logging.getLogger(__name__)

_CHUNK = 200
# At most 50 songs a second: a store that is swept must still serve.
_PAUSE_S = 0.02
_LAST = frozenset({"job.json", "upload.json"})


class Retention:
    """Sweeps a store by age. Whatever an unfinished job may still read or write is kept."""

    def __init__(self, redis: Redis, keys: Keys, store: Store, retention_s: int) -> None:
        self._redis = redis
        self._keys = keys
        self._jobs = Jobs(redis, keys.prefix)
        self._store = store
        self._batches = BatchRepository(self._jobs, keys, retention_s)
        self._batch_files = BatchFiles(store)
        self._retention_s = retention_s

    def sweep(self, stop: Event) -> int:
        """One pass over the store, cut short by `stop`; how many songs, uploads and batches went.

        Raises:
            StoreUnavailable: the store does not answer. What is left is for the next sweep.
        """
        cutoff = now() - timedelta(seconds=self._retention_s)
        count = 0
        for root in ("songs", "uploads"):
            for doomed in expired(self._store.list(root), cutoff, self._in_use):
                for found in doomed:
                    self._store.delete(found.key)
                count += 1
                if stop.wait(_PAUSE_S):
                    return count
        count += self._sweep_batches(cutoff, stop)
        if count:
            log.info("deleted count=%d older_than=%s", count, cutoff.isoformat())
        return count

    def _sweep_batches(self, cutoff: datetime, stop: Event) -> int:
        """Batches that have ended, or never began, and whose newest object is older than `cutoff`."""
        newest: dict[str, datetime] = {}
        for found in self._store.list("batches"):
            owner = "/".join(found.key.split("/")[:3])
            newest[owner] = max(found.modified, newest.get(owner, found.modified))
        count = 0
        for owner, modified in newest.items():
            if modified >= cutoff or self._redis.zscore(self._keys.batches, owner.rpartition("/")[2]) is not None:
                continue
            self._store.delete_prefix(owner)
            count += 1
            if stop.wait(_PAUSE_S):
                break
        return count

    def _in_use(self) -> set[str]:
        """Ids of unfinished jobs, and of the songs and uploads that they, or unfinished batches, start from."""
        found = self._redis.zscan_iter(self._keys.live, count=_CHUNK)
        used: set[str] = set()
        for batch_id in self._batches.unfinished():
            if record := self._batches.read(batch_id):
                with suppress(NotFound):  # erased by hand: there is nothing that it could start from
                    used.update(self._batch_files.header(record.header.tenant, batch_id).sources)
        while chunk := [job_id.decode() for job_id, _ in islice(found, _CHUNK)]:
            used.update(chunk)
            for entry in (seen.entry for seen in self._jobs(calls.look(chunk))):
                if entry is not None:
                    used.update(_sources(entry.wire, json.loads(entry.fields.get("container", "{}"))))
        return used


def _sources(spec: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    inputs = container.get("inputs", ())
    given = (each.get("upload") or each.get("artifact") or each["prefix"].split("/")[1] for each in inputs)
    sources = (spec.get("source_audio"), spec.get("reference_audio"), *given)
    return (source.partition("/")[0] for source in sources if source)  # an upload's id, or a song's: job id and index


def expired(
    objects: Iterable[StoredObject], cutoff: datetime, in_use: Callable[[], set[str]]
) -> Iterator[list[StoredObject]]:
    """Songs and uploads whose newest object is older than `cutoff` and that are not in use, their records last.

    A listing returns a directory's objects together; otherwise each part would be judged by itself. `in_use`
    is called once, and only if something is old enough.
    """
    used: set[str] | None = None
    for directory, group in groupby(objects, key=lambda found: found.key.rpartition("/")[0]):
        found = sorted(group, key=lambda item: item.key.rpartition("/")[2] in _LAST)
        if max(item.modified for item in found) >= cutoff:
            continue
        used = in_use() if used is None else used
        if directory.rpartition("/")[2] not in used:
            yield found
