"""What Redis holds of batches: status, cursor and counts, and of parts under way the lines that have ended.

Fields of a batch's hash: `tenant`, `header` (JSON BatchHeader without its sources), `status`, `total`, `round`,
`released` (lines gone over in this round), `completed`, `failed`, `canceled`, `running`, `waiting_for`, `created` (Unix
seconds), `ended_at`, `ends_as` (while finalizing), `restored` (Redis had lost it: parts of its round may be written),
`webhook`, `deliveries`, `delivery:N` (as in a job's ledger).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis import Redis

from api.batches import scripts
from serinette.batch import Batch, BatchCounts, BatchHeader, BatchLine, BatchStatus, LineStatus
from serinette.names import Keys
from serinette.webhook import Delivery

# Which count a line adds to, by how it ended.
_COUNTS = {LineStatus.SUCCEEDED: "completed", LineStatus.FAILED: "failed", LineStatus.CANCELED: "canceled"}


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
    def parse(cls, raw: Mapping[Any, Any]) -> Page | None:
        """Read the hash as `HGETALL` gives it; None when there is none."""
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        if "header" not in fields:
            return None
        numbers = {name: int(fields[name]) for name in ("round", "released", "completed", "failed", "canceled")}
        tries = range(1, int(fields.get("deliveries", 0)) + 1)
        return cls(
            header=BatchHeader.model_validate_json(fields["header"]),
            status=BatchStatus(fields["status"]),
            running=int(fields.get("running", 0)),
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
        fields: dict[str, Any] = dict.fromkeys(("round", "released", "completed", "failed", "canceled", "running"), 0)
        fields |= {"tenant": header.tenant, "header": text, "status": BatchStatus.IN_PROGRESS, "total": header.total}
        fields |= {"created": header.created_at.timestamp()}
        fields |= restored
        if header.webhook:
            fields["webhook"] = header.webhook
        keys = [self.keys.batch(header.id), self.keys.batches, self.keys.tenant_batches(header.tenant)]
        pairs = [part for pair in fields.items() for part in pair]
        told: Any = self.redis.eval(scripts.ENTER, 3, *keys, header.id, fields["created"], most, *pairs)
        return None if told < 0 else told == 1

    def read(self, batch_id: str) -> Page | None:
        """One batch."""
        return Page.parse(self.redis.hgetall(self.keys.batch(batch_id)))

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
            with self.redis.pipeline(transaction=False) as pipe:
                for batch_id in ids:
                    pipe.hgetall(self.keys.batch(batch_id))
                read = [Page.parse(raw) for raw in pipe.execute()]
            pages += [page for page in read if page]
            if gone := [batch_id for batch_id, page in zip(ids, read, strict=True) if page is None]:
                self.redis.zrem(index, *gone)
            if len(ids) < limit:
                break
            first += len(ids) - len(gone)
        return pages[:limit]

    def move(self, batch_id: str, to: BatchStatus, *allowed: BatchStatus) -> BatchStatus | None:
        """Take a status, if the present one is among the `allowed`; the one that it then has, None of no batch."""
        told: Any = self.redis.eval(scripts.MOVE, 1, self.keys.batch(batch_id), to, *allowed)
        return BatchStatus(told.decode()) if told else None

    def retry(self, batch_id: str) -> bool:
        """Begin another round over an ended batch, for the lines that were not sung; False if there is no such line."""
        keys = [self.keys.batch(batch_id), self.keys.batches, self.keys.webhooks]
        return bool(self.redis.eval(scripts.RETRY, 3, *keys, batch_id))

    def forget(self, tenant: str, batch_id: str) -> None:
        """Erase an ended batch."""
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.delete(self.keys.batch(batch_id), self.keys.batch_open(batch_id))
            pipe.zrem(self.keys.tenant_batches(tenant), batch_id)
            pipe.zrem(self.keys.webhooks, batch_id)
            pipe.execute()

    # -- under way: what maintenance does

    def open_parts(self, batch_id: str) -> list[int]:
        """Numbers of the parts that are released and not in the store yet."""
        found: Any = self.redis.smembers(self.keys.batch_open(batch_id))
        return sorted(int(part) for part in found)

    def ended_numbers(self, page: Page, part: int) -> set[int]:
        """The lines (from 0) of an open part that have ended."""
        found: Any = self.redis.hkeys(self.keys.batch_part(page.header.id, page.round, part))
        return {int(number) for number in found}

    def ended_lines(self, page: Page, part: int) -> dict[int, bytes]:
        """The lines (from 0) of an open part that have ended, as JSON BatchLine."""
        found: Any = self.redis.hgetall(self.keys.batch_part(page.header.id, page.round, part))
        return {int(line): text for line, text in found.items()}

    def gather(self, page: Page, part: int, lines: Iterable[BatchLine], *, counted: bool = True) -> int:
        """Enter lines that have ended; how many were not entered yet."""
        arguments = [page.round, part, *_entries(lines, counted)]
        return int(self.redis.eval(scripts.GATHER, 3, *self._keys_of(page, part), *arguments))

    def advance(
        self, page: Page, part: int, over: range, ended: Iterable[BatchLine], sung: Iterable[BatchLine]
    ) -> bool:
        """Move the cursor over some lines of one part; False if it is elsewhere.

        `ended` are lines that need no job, `sung` those of them that an earlier round has counted.
        """
        entries = [*_entries(ended, counted=True), *_entries(sung, counted=False)]
        keys, arguments = self._keys_of(page, part), [page.round, part, over.start, over.stop]
        return bool(self.redis.eval(scripts.ADVANCE, 3, *keys, *arguments, *entries))

    def close(self, page: Page, part: int) -> None:
        """A part's lines are in the store."""
        self.redis.eval(scripts.CLOSE, 3, *self._keys_of(page, part), page.round, part)

    def tell(self, batch_id: str, running: int, waiting_for: str | None) -> None:
        """Write what the owner is told of the batch's way."""
        self.redis.eval(scripts.TELL, 1, self.keys.batch(batch_id), running, waiting_for or "")

    def finalize(self, batch_id: str) -> bool:
        """Whether all lines have ended and only the files are to be written."""
        return bool(self.redis.eval(scripts.FINALIZE, 2, self.keys.batch(batch_id), self.keys.batch_open(batch_id)))

    def drop(self, batch_id: str) -> None:
        """A batch that is nowhere is not unfinished."""
        self.redis.zrem(self.keys.batches, batch_id)

    def end(self, page: Page, ended_at: datetime) -> bool:
        """End a batch whose files are written; True for the one that did."""
        keys = [self.keys.batch(page.header.id), self.keys.batches, self.keys.webhooks]
        arguments: list[str | int] = [page.header.id, page.round, ended_at.isoformat(), self.ttl_s]
        return bool(self.redis.eval(scripts.END, 3, *keys, *arguments))

    def _keys_of(self, page: Page, part: int) -> list[str]:
        batch_id = page.header.id
        part_key = self.keys.batch_part(batch_id, page.round, part)
        return [self.keys.batch(batch_id), self.keys.batch_open(batch_id), part_key]


def _entries(lines: Iterable[BatchLine], counted: bool) -> list[Any]:
    entries: list[Any] = []
    for line in lines:
        text = line.model_dump_json(exclude_none=True)
        entries += [line.line - 1, _COUNTS[line.status] if counted else "", text]
    return entries


def parse_lines(texts: Iterable[bytes | str]) -> list[BatchLine]:
    """Lines as `ended_lines` or the store gives them."""
    return [BatchLine.model_validate(json.loads(text)) for text in texts]
