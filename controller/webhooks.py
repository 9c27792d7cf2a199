"""Delivers the ends of jobs and batches to their webhooks: from the outbox, signed, again after longer pauses."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
from pydantic import SecretStr
from redis import Redis
from standardwebhooks import Webhook

from controller.outbox import Outbox
from controller.settings import ControllerSettings
from serinette import __version__
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
# No connection is kept: the next one might be for another name at the same address.
_LIMITS = httpx.Limits(max_keepalive_connections=0)


def pause_s(tries: int, most: int, first_s: float) -> float | None:
    """Seconds from the last of so many failed tries to the next, each four times the one before; None: no more."""
    return min(first_s * 4 ** (tries - 1), _LONGEST_PAUSE_S) if tries < most else None


# -- one signed POST


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a try. Neither status nor error: never."""

    status: int | None = None
    error: str | None = None

    @property
    def delivered(self) -> bool:
        """Whether the target took it."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def final(self) -> bool:
        """Whether no further try is wanted: it was taken, or the target said that it is gone (410)."""
        return self.delivered or self.status == httpx.codes.GONE


class CheckedTransport(httpx.AsyncBaseTransport):
    """Connects to the address that was looked up and checked, and to no other: a name may mean another one a moment
    later (DNS rebinding). TLS still proves the name.
    """

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self._inner = httpx.AsyncHTTPTransport(limits=_LIMITS)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it to the first of the host's addresses that takes the connection.

        Raises:
            PermissionError: the host leads where deliveries may not go.
            OSError: it cannot be looked up.
        """
        url, host = request.url, request.url.raw_host.decode("ascii")
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await asyncio.to_thread(self._targets.addresses, host, port)
        request.extensions = {**request.extensions, "sni_hostname": host}
        for address in addresses:
            request.url = url.copy_with(host=str(address))
            try:
                return await self._inner.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
        raise OSError(f"{host} has no address")

    async def aclose(self) -> None:
        """Close what is open."""
        await self._inner.aclose()


def open_client(targets: Targets, timeout_s: float) -> httpx.AsyncClient:
    """A client that reaches only what `targets` allows: past no proxy, with nothing of ours but what it is given."""
    return httpx.AsyncClient(transport=CheckedTransport(targets), timeout=timeout_s, trust_env=False)


def signatures(secrets: Sequence[SecretStr], event_id: str, at: datetime, body: str) -> str:
    """`webhook-signature`, one for each secret: while they change, a receiver may know the old or the new one."""
    return " ".join(Webhook(secret.get_secret_value()).sign(event_id, at, body) for secret in secrets)


async def send(client: httpx.AsyncClient, url: str, body: str, headers: dict[str, str], timeout_s: float) -> Answer:
    """POST once, all in `timeout_s`; the answer's body is not read. Raises nothing of the network's."""
    head = {"Content-Type": "application/json", "User-Agent": f"serinette/{__version__}", **headers}
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("POST", url, content=body.encode(), headers=head, follow_redirects=False) as response,
        ):
            status = response.status_code
    except TimeoutError:
        return Answer(error=f"the target did not answer within {timeout_s:g} s")
    except PermissionError as error:
        return Answer(error=str(error))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Answer(error=f"the target could not be reached: {str(error) or type(error).__name__}")
    if 300 <= status < 400:
        return Answer(status, "the target redirects, which is not followed: name the URL that it leads to")
    return Answer(status, None if 200 <= status < 300 else f"the target answered {status}")


# -- what is sent


@dataclass(frozen=True, slots=True)
class _Event:
    """The end of one job or batch, and where and how often it was sent."""

    tenant: str | None
    webhook: str
    id: str
    type: str
    body: str
    tries: int
    ended_at: str  # as in Redis


def event_body(job: Job) -> str:
    """The job as GET answers it, without the log of these very tries. The same bytes at every try."""
    data: dict[str, Any] = job.model_dump(mode="json", exclude={"deliveries", "webhook"})
    return _body(event_type(job.status), job.ended_at or job.created_at, data)


def _body(kind: str, ended_at: datetime, data: dict[str, Any]) -> str:
    return json.dumps({"type": kind, "timestamp": ended_at.isoformat(), "data": data}, ensure_ascii=False)


# -- the duty


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
        """Send what is due; how many tries there were. Raises RedisError when Redis does not answer."""
        count = 0
        hidden_s = int(self._settings.webhook_timeout_s) + _MARGIN_S
        while due := self._outbox.take(hidden_s, _TOGETHER):
            asyncio.run(self._send_all(due))
            count += len(due)
        return count

    async def _send_all(self, job_ids: list[str]) -> None:
        async with open_client(self._targets, self._settings.webhook_timeout_s) as client:
            await asyncio.gather(*(self._send(client, job_id) for job_id in job_ids))

    async def _send(self, client: httpx.AsyncClient, job_id: str) -> None:
        event = await asyncio.to_thread(self._batch_end if is_batch_id(job_id) else self._job_end, job_id)
        secrets = self._settings.signs_for(event.tenant) if event else []
        if event is None or not secrets:
            log.warning("%s: its end is not delivered: it was erased, or there is no secret to sign with", job_id)
            await asyncio.to_thread(self._outbox.drop, job_id)
            return
        at = now()
        headers = {
            "webhook-id": event.id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": signatures(secrets, event.id, at, event.body),
        }
        answer = await send(client, event.webhook, event.body, headers, self._settings.webhook_timeout_s)
        await asyncio.to_thread(self._log, job_id, event, at, answer)

    def _job_end(self, job_id: str) -> _Event | None:
        entry = self._jobs(calls.look([job_id]))[0].entry
        if entry is None or entry.webhook is None or not entry.status.ended:
            return None
        try:
            body, tries = event_body(entry.job()), len(entry.deliveries)
        except (KeyError, ValueError, TypeError):  # a record that cannot be read; its end is reported by GET only
            log.exception("job=%s cannot be read", job_id)
            return None
        name, ended_at = event_id(job_id, entry.status), entry.fields["ended_at"]
        return _Event(entry.tenant, entry.webhook, name, event_type(entry.status), body, tries, ended_at)

    def _batch_end(self, batch_id: str) -> _Event | None:
        record = self._batches.read(batch_id)
        if record is None or record.header.webhook is None or not record.status.ended:  # erased, or retried meanwhile
            return None
        batch, kind = record.batch(), f"batch.{record.status}"
        data = batch.model_dump(mode="json", exclude={"deliveries", "webhook"})
        body = _body(kind, batch.ended_at or batch.created_at, data)
        name = f"{event_id(batch_id, record.status)}_{record.round}"
        ended_at = record.ended_at.isoformat() if record.ended_at else ""
        return _Event(batch.tenant, record.header.webhook, name, kind, body, len(record.tries), ended_at)

    def _log(self, job_id: str, event: _Event, at: datetime, answer: Answer) -> None:
        number = event.tries + 1
        again_s = (
            None if answer.final else pause_s(number, self._settings.webhook_attempts, self._settings.webhook_backoff_s)
        )
        delivery = Delivery(
            id=event.id,
            event=event.type,
            number=number,
            at=at,
            delivered=answer.delivered,
            status=answer.status,
            error=answer.error,
            next_at=None if again_s is None else now() + timedelta(seconds=again_s),
        )
        self._outbox.log(job_id, event.ended_at, delivery, again_s)
        how = "delivered" if answer.delivered else f"not delivered: {answer.error}"
        log.info("webhook of=%s try=%d %s", job_id, number, how)
