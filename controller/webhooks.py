"""Tells the ends of jobs and batches to their webhooks: from the outbox, signed, again after longer pauses."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
from redis import Redis

from controller.outbox import Outbox
from controller.settings import ControllerSettings
from controller.webhook_sending import Answer, open_client, send, signatures
from serinette.batch import is_batch_id
from serinette.batches.repository import BatchRepository
from serinette.job import Job, now
from serinette.jobs import Jobs, calls
from serinette.webhook import Delivery, event_id, event_type
from serinette.webhook_targets import Targets

log = logging.getLogger(__name__)

_TOGETHER = 64
# Beyond the time one try may take: a replica that dies meanwhile leaves its entries to be taken again after this.
_MARGIN_S = 20
_LONGEST_PAUSE_S = 6 * 3600.0


def pause_s(tries: int, most: int, first_s: float) -> float | None:
    """Seconds from the last of so many failed tries to the next: four times the pause before, then none at all."""
    return min(first_s * 4 ** (tries - 1), _LONGEST_PAUSE_S) if tries < most else None


def event_body(job: Job) -> str:
    """What is told: the job as GET answers it, without the log of these very tries. The same bytes at every try."""
    told: dict[str, Any] = job.model_dump(mode="json", exclude={"deliveries", "webhook"})
    return _body(event_type(job.status), job.ended_at or job.created_at, told)


def _body(kind: str, ended_at: datetime, told: dict[str, Any]) -> str:
    return json.dumps({"type": kind, "timestamp": ended_at.isoformat(), "data": told}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class _End:
    """What is told of one end: to whom, as what, and how often that was tried."""

    tenant: str | None
    webhook: str
    name: str  # the webhook-id
    kind: str
    body: str
    tries: int


class Webhooks:
    """One round over the outbox at a time. Any number of replicas may do so at once: an entry is one replica's for as
    long as a try may take, and is another's only if that replica did not log how it went.
    """

    def __init__(self, redis: Redis, settings: ControllerSettings) -> None:
        self._settings = settings
        self._jobs = Jobs(redis, settings.redis_prefix)
        self._outbox = Outbox(redis, settings.keys)
        self._batches = BatchRepository(self._jobs, settings.keys, settings.retention_s)
        self._targets = Targets(settings.webhook_networks)

    def __call__(self) -> int:
        """Tell what is due; how many tries there were. Raises RedisError when Redis does not answer."""
        count = 0
        hidden_s = int(self._settings.webhook_timeout_s) + _MARGIN_S
        while due := self._outbox.take(hidden_s, _TOGETHER):
            asyncio.run(self._tell_all(due))
            count += len(due)
        return count

    async def _tell_all(self, job_ids: list[str]) -> None:
        async with open_client(self._targets, self._settings.webhook_timeout_s) as client:
            await asyncio.gather(*(self._tell(client, job_id) for job_id in job_ids))

    async def _tell(self, client: httpx.AsyncClient, job_id: str) -> None:
        end = await asyncio.to_thread(self._batch_end if is_batch_id(job_id) else self._job_end, job_id)
        secrets = self._settings.signs_for(end.tenant) if end else []
        if end is None or not secrets:
            log.warning("%s: its end is not delivered: it was erased, or there is no secret to sign with", job_id)
            await asyncio.to_thread(self._outbox.drop, job_id)
            return
        at = now()
        headers = {
            "webhook-id": end.name,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": signatures(secrets, end.name, at, end.body),
        }
        answer = await send(client, end.webhook, end.body, headers, self._settings.webhook_timeout_s)
        await asyncio.to_thread(self._log, job_id, end, at, answer)

    def _job_end(self, job_id: str) -> _End | None:
        entry = self._jobs(calls.look([job_id]))[0].entry
        if entry is None or entry.webhook is None or not entry.status.ended:
            return None
        try:
            body, tries = event_body(entry.job()), len(entry.deliveries)
        except (KeyError, ValueError, TypeError):  # a record that cannot be read; its end is reported by GET only
            log.exception("job=%s cannot be read", job_id)
            return None
        return _End(entry.tenant, entry.webhook, event_id(job_id, entry.status), event_type(entry.status), body, tries)

    def _batch_end(self, batch_id: str) -> _End | None:
        record = self._batches.read(batch_id)
        if record is None or record.header.webhook is None or not record.status.ended:  # erased, or retried meanwhile
            return None
        batch, kind = record.batch(), f"batch.{record.status}"
        told = batch.model_dump(mode="json", exclude={"deliveries", "webhook"})
        body = _body(kind, batch.ended_at or batch.created_at, told)
        name = f"{event_id(batch_id, record.status)}_{record.round}"
        return _End(batch.tenant, record.header.webhook, name, kind, body, len(record.tries))

    def _log(self, job_id: str, end: _End, at: datetime, answer: Answer) -> None:
        number = end.tries + 1
        again_s = (
            None if answer.final else pause_s(number, self._settings.webhook_attempts, self._settings.webhook_backoff_s)
        )
        delivery = Delivery(
            id=end.name,
            event=end.kind,
            number=number,
            at=at,
            delivered=answer.delivered,
            status=answer.status,
            error=answer.error,
            next_at=None if again_s is None else now() + timedelta(seconds=again_s),
        )
        self._outbox.log(job_id, delivery, again_s)
        how = "delivered" if answer.delivered else f"not delivered: {answer.error}"
        log.info("webhook of=%s try=%d %s", job_id, number, how)
