"""What Redis holds of batches beside the records of their jobs: status, cursor and counts, and how lines have ended.

Fields of a batch's hash: `tenant`, `header` (JSON BatchHeader without its sources), `status`, `total`, `round`,
`released` (lines gone over in this round), `completed`, `failed`, `canceled`, `waiting_for`, `created` (Unix seconds),
`ended_at`, `ends_as` (while finalizing), `restored` (Redis had lost it: parts of its round may be written), `webhook`,
`deliveries`, `delivery:N` (as in a job's record), `synced`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from serinette.batch import Batch, BatchCounts, BatchHeader, BatchStatus
from serinette.batches import scripts
from serinette.errors import QueueUnavailable
from serinette.names import Keys
from serinette.webhook import Delivery


class LineEnd(StrEnum):
    """How a line ended in a round: as its job did, or without one."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    CALLED_OFF = "called_off"  # the batch was canceled before its job was submitted
    BEFORE = "before"  # an earlier round made its songs, and counted it


Ends = Mapping[int, LineEnd]


@dataclass(frozen=True, slots=True)
class Page:
    """One batch as Redis holds it."""

    header: BatchHeader
    status: BatchStatus
    round: int
    released: int
    completed: int
    failed: int
    canceled: int
    running: int
    waiting_for: str | None
    ends_as: BatchStatus | None
    restored: bool
    ended_at: datetime | None
    deliveries: tuple[Delivery, ...]

    @classmethod
    def parse(cls, raw: Mapping[Any, Any], running: int) -> Page | None:
        """Read the hash as `HGETALL` gives it; None when there is none. `running`: its jobs that an attempt holds."""
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        if "header" not in fields:
            return None
        numbers = {name: int(fields[name]) for name in ("round", "released", "completed", "failed", "canceled")}
        tries = range(1, int(fields.get("deliveries", 0)) + 1)
        return cls(
            header=BatchHeader.model_validate_json(fields["header"]),
            status=BatchStatus(fields["status"]),
            running=running,
            waiting_for=fields.get("waiting_for"),
            restored="restored" in fields,
            ends_as=BatchStatus(fields["ends_as"]) if "ends_as" in fields else None,
            ended_at=datetime.fromisoformat(fields["ended_at"]) if "ended_at" in fields else None,
            deliveries=tuple(Delivery.model_validate_json(fields[f"delivery:{n}"]) for n in tries),
            **numbers,
        )

    @property
    def ended(self) -> int:
        """Lines of which nothing more will come in this round, those of earlier rounds among them."""
        return self.completed + self.failed + self.canceled

    def counts(self) -> BatchCounts:
        """For the owner. In a retry the songs of earlier rounds count as released, wherever the cursor is."""
        released = max(self.released, self.ended)
        running = min(self.running, released - self.ended)
        return BatchCounts(
            total=self.header.total,
            released=released,
            queued=released - self.ended - running,
            running=running,
            completed=self.completed,
            failed=self.failed,
            canceled=self.canceled,
        )

    def batch(self) -> Batch:
        """The batch as its owner sees it."""
        header = self.header
        return Batch(
            id=header.id,
            tenant=header.tenant,
            name=header.name,
            status=self.status,
            request_counts=self.counts(),
            round=self.round,
            labels=header.labels,
            timeout_s=header.timeout_s,
            webhook=header.webhook,
            deliveries=self.deliveries,
            waiting_for=self.waiting_for,
            created_at=header.created_at,
            ended_at=self.ended_at,
        )


@dataclass(frozen=True, slots=True)
class Book:
    """All batches on one Redis. Every method raises RedisError when it does not answer."""

    redis: Redis
    keys: Keys
    ttl_s: int

    def enter(self, header: BatchHeader, most: int, **restored: int) -> bool | None:
        """Begin a batch; False if it was there already, None if its tenant has `most` unfinished ones.

        `restored`: fields of one that Redis had lost.
        """
        text = header.model_dump_json(exclude={"sources"})
        fields: dict[str, Any] = dict.fromkeys(("round", "released", "completed", "failed", "canceled"), 0)
        fields |= {"tenant": header.tenant, "header": text, "status": BatchStatus.IN_PROGRESS, "total": header.total}
        fields |= {"created": header.created_at.timestamp()}
        fields |= restored
        if header.webhook:
            fields["webhook"] = header.webhook
        keys = [self.keys.batch(header.id), self.keys.batches, self.keys.tenant_batches(header.tenant)]
        pairs = [part for pair in fields.items() for part in pair]
        answer: Any = self.redis.eval(scripts.ENTER, 3, *keys, header.id, fields["created"], most, *pairs)
        return None if answer < 0 else answer == 1

    def sync(self, batch_id: str, wait_ms: int) -> None:
        """Wait until a batch is on the server's disk. Raises QueueUnavailable: it is not yet."""
        # WAITAOF waits for its own connection's writes alone. The file is written in order: this one stands for all.
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.hincrby(self.keys.batch(batch_id), "synced", 1)
            pipe.waitaof(1, 0, wait_ms)
            _, disk = pipe.execute(raise_on_error=False)
        if isinstance(disk, ResponseError) or int(disk[0]) < 1:
            why = disk if isinstance(disk, ResponseError) else f"not within {wait_ms} ms"
            raise QueueUnavailable(
                f"the queue's server did not say that the batch is on its disk ({why}); its songs may be generated all "
                "the same: send it again with its Idempotency-Key, or look for it in the list"
            )

    def read(self, batch_id: str) -> Page | None:
        """One batch."""
        return self._read([batch_id])[0]

    def _read(self, batch_ids: Sequence[str]) -> list[Page | None]:
        with self.redis.pipeline(transaction=False) as pipe:
            for batch_id in batch_ids:
                pipe.hgetall(self.keys.batch(batch_id))
                pipe.scard(self.keys.batch_running(batch_id))
            found = pipe.execute()
        return [Page.parse(raw, running) for raw, running in zip(found[::2], found[1::2], strict=True)]

    def unfinished(self) -> list[str]:
        """Ids of the batches that have not ended, oldest first."""
        found: Any = self.redis.zrange(self.keys.batches, 0, -1)
        return [batch_id.decode() for batch_id in found]

    def newest(self, tenant: str, limit: int) -> list[Page]:
        """A tenant's newest batches; those that Redis has forgotten leave its list."""
        index, first = self.keys.tenant_batches(tenant), 0
        pages: list[Page] = []
        while len(pages) < limit:
            found: Any = self.redis.zrange(index, first, first + limit - 1, desc=True)
            ids = [batch_id.decode() for batch_id in found]
            read = self._read(ids)
            pages += [page for page in read if page]
            if gone := [batch_id for batch_id, page in zip(ids, read, strict=True) if page is None]:
                self.redis.zrem(index, *gone)
            if len(ids) < limit:
                break
            first += len(ids) - len(gone)
        return pages[:limit]

    def move(self, batch_id: str, to: BatchStatus, *allowed: BatchStatus) -> BatchStatus | None:
        """Take a status, if the present one is among the `allowed`; the one that it then has, None of no batch."""
        answer: Any = self.redis.eval(scripts.MOVE, 1, self.keys.batch(batch_id), to, *allowed)
        return BatchStatus(answer.decode()) if answer else None

    def retry(self, batch_id: str) -> bool:
        """Begin another round over an ended batch, for the lines without songs; False if there is no such line."""
        keys = [self.keys.batch(batch_id), self.keys.batches, self.keys.webhooks]
        return bool(self.redis.eval(scripts.RETRY, 3, *keys, batch_id))

    def forget(self, tenant: str, batch_id: str) -> None:
        """Erase an ended batch."""
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.delete(self.keys.batch(batch_id), self.keys.batch_open(batch_id), self.keys.batch_ended(batch_id))
            pipe.zrem(self.keys.tenant_batches(tenant), batch_id)
            pipe.zrem(self.keys.webhooks, batch_id)
            pipe.execute()

    # -- under way: what the controller does

    def open_parts(self, batch_id: str) -> list[int]:
        """Numbers of the parts that are released and not in the store yet."""
        found: Any = self.redis.smembers(self.keys.batch_open(batch_id))
        return sorted(int(part) for part in found)

    def ends(self, page: Page, part: int) -> dict[int, LineEnd]:
        """How lines (from 0) of an open part have ended."""
        found: Any = self.redis.hgetall(self.keys.batch_part(page.header.id, page.round, part))
        return {int(number): LineEnd(how.decode()) for number, how in found.items()}

    def ended_jobs(self, batch_id: str) -> list[str]:
        """Ids of its jobs that have ended and are not entered yet: the transitions put them there."""
        found: Any = self.redis.smembers(self.keys.batch_ended(batch_id))
        return [job_id.decode() for job_id in found]

    def drained(self, batch_id: str, job_ids: Iterable[str]) -> None:
        """These are entered."""
        self.redis.srem(self.keys.batch_ended(batch_id), *job_ids)

    def gather(self, page: Page, part: int, ends: Ends) -> None:
        """Enter lines of an open part that have ended; each is counted once."""
        self.redis.eval(scripts.GATHER, 3, *self._keys_of(page, part), page.round, part, *_flat(ends))

    def advance(self, page: Page, part: int, over: range, ends: Ends) -> bool:
        """Move the cursor over some lines of one part, `ends` of which have ended; False if it is elsewhere."""
        arguments = [page.round, part, over.start, over.stop, *_flat(ends)]
        return bool(self.redis.eval(scripts.ADVANCE, 3, *self._keys_of(page, part), *arguments))

    def close(self, page: Page, part: int) -> None:
        """A part's lines are in the store."""
        self.redis.eval(scripts.CLOSE, 3, *self._keys_of(page, part), page.round, part)

    def waits_for(self, batch_id: str, words: str | None) -> None:
        """Say why no more lines are released."""
        self.redis.eval(scripts.WAITS_FOR, 1, self.keys.batch(batch_id), words or "")

    def finalize(self, batch_id: str) -> bool:
        """Whether all lines have ended and only the files are to be written."""
        return bool(self.redis.eval(scripts.FINALIZE, 2, self.keys.batch(batch_id), self.keys.batch_open(batch_id)))

    def drop(self, batch_id: str) -> None:
        """A batch that is nowhere is not unfinished."""
        self.redis.zrem(self.keys.batches, batch_id)

    def end(self, page: Page, ended_at: datetime) -> bool:
        """End a batch whose files are written; True for the one that did."""
        batch_id = page.header.id
        keys = [self.keys.batch(batch_id), self.keys.batches, self.keys.webhooks, self.keys.batch_ended(batch_id)]
        arguments: list[str | int] = [batch_id, page.round, ended_at.isoformat(), self.ttl_s]
        return bool(self.redis.eval(scripts.END, 4, *keys, *arguments))

    def _keys_of(self, page: Page, part: int) -> list[str]:
        batch_id = page.header.id
        part_key = self.keys.batch_part(batch_id, page.round, part)
        return [self.keys.batch(batch_id), self.keys.batch_open(batch_id), part_key]


def _flat(ends: Ends) -> list[Any]:
    return [part for pair in ends.items() for part in pair]
