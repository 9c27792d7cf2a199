"""What is left of jobs that came, ended in every way and were forgotten, in Redis and in the store.

Through gateway and slot a hundred thousand jobs take the better part of an hour, nearly all of it theirs; a thousand go
that way in tests/load/test_forgetting.py. Here transitions come by the hundred in a round trip, as those two send them;
deadlines, records, webhooks and all that is forgotten are the controller's own.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from api.queue.submission import keyed_job_id
from benchmarks.record import Figures
from controller.sweeper import Sweeper
from gpu_worker.slot.retry_policy import Ending, decide
from serinette.job import JobStatus
from serinette.jobs import Call, Claimed, Entry, Jobs, Lease, Outcome, Submission, calls
from serinette.jobs.finishing import put_record, record_of
from serinette.names import DEFAULT_POOL, Lane, song_prefix
from tests.load.crowd import TENANTS, WAYS, Crowd, Held, error_of, is_repeated
from tests.receivers import receiver
from tests.servers import valkey
from tests.unit.slot_bench import a_result

JOBS = int(os.environ.get("JOBS", "100000"))
WAVE = 1_000
SWEPT_AFTER = 5 * WAVE  # the store
TOGETHER = 200  # transitions of a round trip
RETENTION_S = 30  # so long that ends are recorded and webhooks sent before
LEASE = Lease("pod-1.0.slot", lease_s=600.0)


class QuickCrowd(Crowd):
    """Jobs whose gateway and slots are transitions alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._jobs = Jobs(self.redis, self.keys.prefix)

    def submit(self, numbers: Sequence[int]) -> dict[str, tuple[str, str]]:
        """Those that repeat their Idempotency-Key come twice."""
        made = {number: self._submission(number) for number in numbers}
        again = [made[number] for number in numbers if is_repeated(number)]
        answers = self._together([calls.submit(each) for each in (*made.values(), *again)])
        new = [each.known is None and each.place is not None for each in answers]
        if new != [True] * len(made) + [False] * len(again):
            raise RuntimeError("a job was refused, or one that came twice was taken twice")
        return {each.id: (WAYS[number % len(WAYS)], each.tenant) for number, each in made.items()}

    def cancel(self, jobs: Sequence[tuple[str, str]]) -> None:
        """Jobs that wait, each with its tenant."""
        self._together([calls.cancel(job_id, tenant) for job_id, tenant in jobs])

    def work(self) -> None:
        """End all that wait, and let the controller record those ends that slots leave to it."""
        while claimed := self._claimed():
            self._together([call for each in claimed for call in self._ends(each)])
        sweeper = Sweeper(self.redis, self.store, self.settings)
        while self.redis.zcount(self.keys.unrecorded, "-inf", time.time()):
            sweeper()

    def _submission(self, number: int) -> Submission:
        tenant, spec, options, key = self.wanted(number)
        return Submission(
            id=keyed_job_id(tenant, key) if key else str(uuid4()),
            tenant=tenant,
            pool=DEFAULT_POOL,
            work=spec,
            options=options,
            digest=spec.digest(),
            timeout_s=60,
            max_attempts=3,
            ttl_s=self.retention_s,
        )

    def _claimed(self) -> list[Claimed]:
        asked = [calls.claim(uuid4().hex, LEASE, DEFAULT_POOL, list(Lane)) for _ in range(TOGETHER)]
        return [each for each in self._jobs.many(asked) if isinstance(each, Claimed)]

    def _ends(self, claimed: Claimed) -> Iterator[Call[Any]]:
        """What a slot does with a job of that way."""
        entry, way = claimed.entry, str(claimed.entry.wire["prompt"])
        if way == "canceled while it ran":
            yield calls.cancel(entry.id, entry.tenant)
            yield self._end(entry, Outcome(JobStatus.CANCELED), put=False)
        elif error := error_of(way, claimed.number):
            decision = decide(error, entry.retries_left)
            if decision.ending is Ending.RETRIED:
                yield calls.release(entry.id, entry.owner or "", decision.error, charged=True)
            else:
                yield self._end(entry, Outcome(JobStatus(decision.ending), decision.error), put=claimed.number > 1)
        else:
            self.store.put(f"{song_prefix(entry.tenant, entry.id)}{entry.owner}-0.wav", b"RIFF")
            yield self._end(entry, Outcome(JobStatus.SUCCEEDED, result=a_result(entry.id)), put=True)

    def _end(self, entry: Entry, outcome: Outcome, *, put: bool) -> Call[Any]:
        """The end of an attempt that `put` its record into the store, or leaves that to the controller."""
        attempt = entry.attempts[-1]
        record = put_record(self.store, record_of(entry, attempt, outcome), entry) if put else None
        return calls.finish(entry.id, attempt.id, outcome, recorded=put, by=attempt.id, of=record)

    def _together(self, asked: Sequence[Call[Any]]) -> list[Any]:
        chunks = (asked[first : first + TOGETHER] for first in range(0, len(asked), TOGETHER))
        return [answer for chunk in chunks for answer in self._jobs.many(chunk)]


def measure() -> Figures:
    """Before and after so many jobs."""
    logging.disable(logging.WARNING)
    with (
        tempfile.TemporaryDirectory() as directory,
        valkey(Path(directory) / "valkey") as server,
        receiver() as target,
    ):
        crowd = QuickCrowd(Path(directory), server.connection_url, target, RETENTION_S)
        crowd.wave(WAVE)  # what is kept once is there from now on
        before, most = crowd.settle(timeout_s=600), 0
        first, began_s, sweeps_s = crowd.ended.copy(), time.monotonic(), 0.0
        for number in range(0, JOBS, WAVE):
            crowd.wave(WAVE)
            most = max(most, crowd.memory_bytes())
            if number % SWEPT_AFTER == 0:
                sweeps_s -= time.monotonic()
                crowd.sweep_store()
                sweeps_s += time.monotonic()
        wall_s, after = time.monotonic() - began_s, crowd.settle(timeout_s=600)
        return {
            "jobs": crowd.ended.total() - first.total(),
            "ended": dict(crowd.ended - first),
            "told_by_usage": dict(crowd.reported() - first),
            "ways": {way: WAYS.count(way) for way in WAYS},
            "tenants": TENANTS,
            "webhooks": len(set(target.ids)),
            "wall_s": round(wall_s, 1),
            "store_sweeps_s": round(sweeps_s, 1),
            "before": _figures(before),
            "most_memory_bytes": most,
            "after": _figures(after),
            "grown_keys": len(after.kept - before.kept),
            "grown_bytes": after.memory_bytes - before.memory_bytes,
        }


def _figures(held: Held) -> Figures:
    return {
        "keys": len(held.names),
        "names": sorted(held.names),
        "memory_bytes": held.memory_bytes,
        "files": held.files,
    }
