"""Tells the ends of jobs to their webhooks: from the outbox, signed, again with longer and longer pauses."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import datetime, timedelta
from typing import Any

import httpx
from redis import Redis

from api.maintenance.webhook_sending import Answer, open_client, send, signatures
from api.queue.reader import Reader
from api.settings import MaintenanceSettings
from api.targets import Targets
from serinette.job import Job, now
from serinette.ledger import Entry, Ledger
from serinette.outbox import Outbox
from serinette.webhook import Delivery, event_id, event_type

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
    ended_at = (job.ended_at or job.created_at).isoformat()
    return json.dumps({"type": event_type(job.status), "timestamp": ended_at, "data": told}, ensure_ascii=False)


class Webhooks:
    """One round over the outbox at a time. Any number of replicas may do so at once: an entry is one replica's for as
    long as a try may take, and is another's only if that replica did not log how it went.
    """

    def __init__(self, redis: Redis, settings: MaintenanceSettings) -> None:
        self._settings = settings
        self._ledger = Ledger(redis, settings.keys, settings.retention_s)
        self._outbox = Outbox(redis, settings.keys)
        self._reader = Reader(redis, self._ledger)
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
        entry = await asyncio.to_thread(self._ledger.read, job_id)
        job = await asyncio.to_thread(self._job, job_id)
        secrets = self._settings.signs_for(entry.tenant)
        if entry.webhook is None or entry.outcome is None or job is None or not secrets:
            log.warning("job=%s: its end is told to nobody: it was erased, or there is no secret to sign with", job_id)
            await asyncio.to_thread(self._outbox.drop, job_id)
            return
        at, name, body = now(), event_id(job_id, entry.outcome), event_body(job)
        headers = {
            "webhook-id": name,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": signatures(secrets, name, at, body),
        }
        answer = await send(client, entry.webhook, body, headers, self._settings.webhook_timeout_s)
        await asyncio.to_thread(self._log, job_id, entry, at, answer)

    def _job(self, job_id: str) -> Job | None:
        try:
            sighting = self._reader.see([job_id])[0]
            return sighting.job() if sighting else None
        except (KeyError, ValueError, TypeError):  # one whose entry in RQ cannot be read; its end was told by GET only
            log.exception("job=%s cannot be read", job_id)
            return None

    def _log(self, job_id: str, entry: Entry, at: datetime, answer: Answer) -> None:
        if entry.outcome is None:
            return
        number = len(entry.deliveries) + 1
        again_s = (
            None if answer.final else pause_s(number, self._settings.webhook_attempts, self._settings.webhook_backoff_s)
        )
        delivery = Delivery(
            id=event_id(job_id, entry.outcome),
            event=event_type(entry.outcome),
            number=number,
            at=at,
            delivered=answer.delivered,
            status=answer.status,
            error=answer.error,
            next_at=None if again_s is None else now() + timedelta(seconds=again_s),
        )
        self._outbox.log(job_id, delivery, again_s)
        how = "delivered" if answer.delivered else f"not delivered: {answer.error}"
        log.info("webhook job=%s try=%d %s", job_id, number, how)
