"""What Redis holds of batches beside the records of their jobs.

Fields of a batch's hash: `header` (JSON BatchHeader without its sources), `status`, `round`, `released` (the cursor:
lines gone over in this round), `completed`, `failed`, `canceled`, `waiting_for`, `ended_at`, `ends_as` (while
finalizing), `canceled_from` (once canceled: no line from this one on has a job), `restored` (Redis had lost it: parts
of its round may be written), `webhook`, `deliveries`, `delivery:N` (as in a job's record).

The transitions keep, in the step that changes a job (serinette/jobs/transitions/): the jobs that have not ended, by
line; those that run; and the counts, which the controller sets once more, from the results, when the batch ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, Json
from redis.exceptions import ResponseError

from serinette.batch import Batch, BatchCounts, BatchHeader, BatchStatus, LineStatus
from serinette.errors import QueueUnavailable
from serinette.job import JobStatus
from serinette.jobs import Jobs, calls
from serinette.jobs.script import Argument, text
from serinette.names import Keys
from serinette.spec import RecordModel
from serinette.webhook import Delivery

_COUNTED_AS = {LineStatus.SUCCEEDED: "completed", LineStatus.FAILED: "failed", LineStatus.CANCELED: "canceled"}


class BatchRecord(RecordModel):
    """One batch as Redis holds it. `live`: its jobs that have not ended; `running`: those that an attempt holds;
    `open_parts`: those that are released and not in the store yet.
    """

    header: Json[BatchHeader]
    status: BatchStatus
    round: int
    released: int
    completed: int
    failed: int
    canceled: int
    live: int
    running: int
    open_parts: int
    waiting_for: str | None = None
    ends_as: BatchStatus | None = None
    canceled_from: int | None = None
    restored: bool = False
    ended_at: AwareDatetime | None = None
    tries: tuple[Json[Delivery], ...] = ()

    @classmethod
    def parse(cls, raw: Mapping[Any, Any], live: int, running: int, open_parts: int) -> BatchRecord | None:
        """Read the hash as `HGETALL` gives it; None when there is none."""
        fields: dict[str, Any] = {text(name): text(value) for name, value in raw.items()}
        if "header" not in fields:
            return None
        tries = [fields[f"delivery:{number}"] for number in range(1, int(fields.get("deliveries", 0)) + 1)]
        counted = {"live": live, "running": min(live, running), "open_parts": open_parts}
        return cls.model_validate(fields | counted | {"tries": tries})

    @property
    def id(self) -> str:
        """Its id."""
        return self.header.id

    @property
    def through(self) -> bool:
        """Whether all lines have ended and are in the store: only the files are to be written."""
        return self.released == self.header.total and not self.open_parts and not self.status.ended

    def ended_with(self, counts: Counter[LineStatus], ended_at: datetime) -> BatchRecord:
        """The batch as it is once it has ended. `counts`: of the lines in its files."""
        exact = {name: counts[status] for status, name in _COUNTED_AS.items()}
        return self.model_copy(
            update={"status": self.ends_as, "live": 0, "running": 0, "ended_at": ended_at, **exact},
        )

    def batch(self) -> Batch:
        """The batch as its owner sees it. In a retry the songs of earlier rounds count as released."""
        counts = BatchCounts(
            total=self.header.total,
            released=self.completed + self.failed + self.canceled + self.live,
            queued=self.live - self.running,
            running=self.running,
            completed=self.completed,
            failed=self.failed,
            canceled=self.canceled,
        )
        # Fields of one name mean the same.
        return Batch.model_validate(
            {**dict(self.header), **dict(self), "request_counts": counts, "deliveries": self.tries}
        )


@dataclass(frozen=True, slots=True)
class BatchRepository:
    """All batches on one Redis. Every method raises RedisError when it does not answer.

    What changes a batch answers whether it did: False means that the batch is not any more as it was read.
    """

    jobs: Jobs
    keys: Keys
    ttl_s: int

    def enter(self, header: BatchHeader, most: int, *, fsync: bool = False, **restored: int) -> calls.BatchEntry:
        """Begin a batch, unless its tenant has `most` unfinished ones. `restored`: fields of a lost batch."""
        fields: dict[str, Argument] = dict.fromkeys(("round", "released", "completed", "failed", "canceled"), 0)
        fields |= {"header": header.model_dump_json(exclude={"sources"}), "status": BatchStatus.IN_PROGRESS.value}
        fields |= restored
        if header.webhook:
            fields["webhook"] = header.webhook
        return self.jobs(calls.enter_batch(header, most, fields, fsync=fsync))

    def sync(self, batch_id: str, wait_ms: int) -> None:
        """Wait until a batch is on the server's disk. Raises QueueUnavailable: it is not yet."""
        # WAITAOF waits for its own connection's writes alone. The file is written in order: this one stands for all.
        with self.jobs.redis.pipeline(transaction=False) as pipe:
            pipe.set(self.keys.synced, batch_id)
            pipe.waitaof(1, 0, wait_ms)
            _, disk = pipe.execute(raise_on_error=False)
        if isinstance(disk, ResponseError) or int(disk[0]) < 1:
            why = disk if isinstance(disk, ResponseError) else f"not within {wait_ms} ms"
            raise QueueUnavailable(
                f"the queue's server did not say that the batch is on its disk ({why}); its songs may be generated all "
                "the same: send it again with its Idempotency-Key, or look for it in the list"
            )

    def read(self, batch_id: str) -> BatchRecord | None:
        """One batch."""
        return self._read([batch_id])[0]

    def _read(self, batch_ids: Sequence[str]) -> list[BatchRecord | None]:
        with self.jobs.redis.pipeline(transaction=True) as pipe:
            for batch_id in batch_ids:
                pipe.hgetall(self.keys.batch(batch_id))
                pipe.zcard(self.keys.batch_live(batch_id))
                pipe.scard(self.keys.batch_running(batch_id))
                pipe.scard(self.keys.batch_open(batch_id))
            found = pipe.execute()
        return [BatchRecord.parse(*found[first : first + 4]) for first in range(0, len(found), 4)]

    def unfinished(self) -> list[str]:
        """Ids of the batches that have not ended, oldest first."""
        return [text(batch_id) for batch_id in self.jobs.redis.zrange(self.keys.batches, 0, -1)]

    def newest(self, tenant: str, limit: int) -> list[BatchRecord]:
        """A tenant's newest batches; those that Redis has forgotten leave its list."""
        index, first = self.keys.tenant_batches(tenant), 0
        records: list[BatchRecord] = []
        while len(records) < limit:
            ids = [text(each) for each in self.jobs.redis.zrange(index, first, first + limit - 1, desc=True)]
            read = self._read(ids)
            records += [record for record in read if record]
            if gone := [batch_id for batch_id, record in zip(ids, read, strict=True) if record is None]:
                self.jobs.redis.zrem(index, *gone)
            if len(ids) < limit:
                break
            first += len(ids) - len(gone)
        return records[:limit]

    def move(self, record: BatchRecord, to: BatchStatus) -> bool:
        """Pause, resume or cancel a batch."""
        key = self.keys.batch(record.id)
        return self._change(record, ["status"], ["HSET", key, "status", to], ["HDEL", key, "waiting_for"])

    def retry(self, record: BatchRecord) -> bool:
        """Begin another round over an ended batch, for the lines without songs."""
        key, created = self.keys.batch(record.id), record.header.created_at.timestamp()
        fresh = ["status", BatchStatus.IN_PROGRESS, "round", record.round + 1]
        fresh += ["released", 0, "failed", 0, "canceled", 0]
        # `running` marks an older version's (controller/upgrade_check.py).
        stale = ["ended_at", "ends_as", "canceled_from", "restored", "running"]
        return self._change(
            record,
            ["status", "round"],
            ["PERSIST", key],
            ["HSET", key, *fresh],
            ["HDEL", key, *stale],
            ["ZADD", self.keys.batches, created, record.id],
            ["ZREM", self.keys.webhooks, record.id],
        )

    def forget(self, batch_id: str) -> None:
        """Erase a batch that has ended, or whose hash is lost. It leaves its tenant's list at the next look."""
        with self.jobs.redis.pipeline(transaction=True) as pipe:
            pipe.delete(self.keys.batch(batch_id), self.keys.batch_open(batch_id), self.keys.batch_live(batch_id))
            pipe.zrem(self.keys.batches, batch_id)
            pipe.zrem(self.keys.webhooks, batch_id)
            pipe.execute()

    def under_way(self, record: BatchRecord) -> tuple[list[int], dict[int, str]]:
        """Parts that are released and not in the store yet, and the jobs that have not ended, by their line from 0."""
        with self.jobs.redis.pipeline(transaction=True) as pipe:
            pipe.smembers(self.keys.batch_open(record.id))
            pipe.zrange(self.keys.batch_live(record.id), 0, -1, withscores=True)
            parts, live = pipe.execute()
        return sorted(map(int, parts)), {int(line): text(job_id) for job_id, line in live}

    def advance(
        self,
        record: BatchRecord,
        to: int,
        ended: Mapping[LineStatus, int],
        *,
        written: bool = False,
        canceled_from: int | None = None,
    ) -> bool:
        """Move the cursor over lines of one part, so many of which have `ended` uncounted. `written`: the part is in
        the store.
        """
        key, part = self.keys.batch(record.id), record.released // record.header.part_lines
        commands: list[list[object]] = [["HSET", key, "released", to]]
        if canceled_from is not None:
            commands[0] += ["canceled_from", canceled_from]
        commands += [["HINCRBY", key, _COUNTED_AS[status], count] for status, count in ended.items() if count]
        if not written:
            commands.append(["SADD", self.keys.batch_open(record.id), part])
        return self._change(record, ["round", "released"], *commands)

    def settle(self, record: BatchRecord, line: int, job_id: str, status: JobStatus | LineStatus) -> bool:
        """Count a job that Redis lost before it could count its end."""
        live, counted = self.keys.batch_live(record.id), _COUNTED_AS[LineStatus(status.value)]
        commands = ["ZREM", live, job_id], ["HINCRBY", self.keys.batch(record.id), counted, 1]
        return self.jobs(calls.guarded([(["ZSCORE", live, job_id], line)], commands))

    def close(self, record: BatchRecord, part: int) -> bool:
        """A part's lines are in the store."""
        return self._change(record, ["round"], ["SREM", self.keys.batch_open(record.id), part])

    def waits_for(self, record: BatchRecord, words: str | None) -> bool:
        """Say why no more lines are released; not of a batch that was moved meanwhile."""
        command = ["HSET", "waiting_for", words] if words else ["HDEL", "waiting_for"]
        command.insert(1, self.keys.batch(record.id))
        return record.waiting_for == words or self._change(record, ["status", "round"], command)

    def finalize(self, record: BatchRecord) -> bool:
        """Write the files next, of a batch that is `through`."""
        key = self.keys.batch(record.id)
        ends_as = BatchStatus.CANCELED if record.status is BatchStatus.CANCELING else BatchStatus.COMPLETED
        return self._change(
            record,
            ["status", "round", "released"],
            ["HSET", key, "status", BatchStatus.FINALIZING, "ends_as", ends_as],
            ["HDEL", key, "waiting_for"],
        )

    def end(self, record: BatchRecord, ended: BatchRecord) -> bool:
        """End a batch whose files are written, as `ended` says."""
        key, at = self.keys.batch(record.id), ended.ended_at
        counts = [part for name in _COUNTED_AS.values() for part in (name, getattr(ended, name))]
        commands: list[list[object]] = [
            ["HSET", key, "status", ended.status, "ended_at", at.isoformat() if at else "", *counts],
            ["HDEL", key, "deliveries"],
            ["EXPIRE", key, self.ttl_s],
            ["DEL", self.keys.batch_live(record.id)],
            ["ZREM", self.keys.batches, record.id],
        ]
        if record.header.webhook:
            commands.append(["ZADD", self.keys.webhooks, 0, record.id])  # due at once
        return self._change(record, ["status", "round"], *commands)

    def _change(self, record: BatchRecord, unchanged: Sequence[str], *commands: Sequence[object]) -> bool:
        """Run commands, unless one of these fields is not any more as it was read."""
        key = self.keys.batch(record.id)
        guards = [(["HGET", key, name], getattr(record, name)) for name in unchanged]
        return self.jobs(calls.guarded(guards, commands))
