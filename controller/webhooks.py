"""Delivers the ends of jobs and batches to their webhooks: from the outbox, signed, again after longer pauses."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx
from redis import Redis
from standardwebhooks import Webhook

from controller.delivery_window import Sender, Window
from controller.settings import ControllerSettings
from serinette import __version__, counters
from serinette.batch import Batch, is_batch_id
from serinette.batches.repository import BatchRecord, BatchRepository
from serinette.job import Job, now
from serinette.jobs import Entry, Jobs, calls
from serinette.names import Keys
from serinette.webhook import Delivery, event_id, event_type
from serinette.webhook_targets import NotLookedUp, Targets

log = logging.getLogger(__name__)

# Entries of the outbox that are looked at together.
_TAKEN = 256
# Longest that one round watches what is under way, which goes on in the next; and between two looks at the outbox.
_ROUND_S = 10.0
_LOOK_S = 0.5
# Ends that are kept here for a turn that comes soon: how long, how many of a tenant, and how many until none are taken.
_KEPT_S = 5.0
_KEPT_OF_TENANT = 64
_KEPT = 512
# A host that the resolver does not find at the moment costs no try.
_NO_ANSWER_S = 10.0
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
    counts: bool = True  # as one of the tries

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
        tenant = str(request.extensions.get("tenant", ""))
        addresses = await asyncio.to_thread(self._targets.addresses, host, port, tenant)
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


async def send(client: httpx.AsyncClient, url: str, body: str, headers: dict[str, str], tenant: str = "") -> Answer:
    """POST once, all in the client's timeout; the answer's body is not read. Raises nothing of the network's."""
    timeout_s = client.timeout.read
    head = {"Content-Type": "application/json", "User-Agent": f"serinette/{__version__}", **headers}
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream(
                "POST", url, content=body.encode(), headers=head, follow_redirects=False, extensions={"tenant": tenant}
            ) as response,
        ):
            status = response.status_code
    except NotLookedUp as error:
        return Answer(error=str(error), counts=False)
    except TimeoutError:
        return Answer(error=f"the target did not answer within {timeout_s or 0:g} s")
    except PermissionError as error:
        return Answer(error=str(error))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Answer(error=f"the target could not be reached: {str(error) or type(error).__name__}")
    if 300 <= status < 400:
        return Answer(status, "the target redirects, which is not followed: name the URL that it leads to")
    return Answer(status, None if 200 <= status < 300 else f"the target answered {status}")


# -- the outbox

# Take what is due, out of every other replica's sight until it should have been sent.
# KEYS: webhooks. ARGV: seconds until others may take it, most jobs.
_TAKE = """#!lua flags=allow-oom
local at = tonumber(redis.call('TIME')[1])
local due = redis.call('ZRANGE', KEYS[1], '-inf', at, 'BYSCORE', 'LIMIT', 0, ARGV[2])
for _, job in ipairs(due) do redis.call('ZADD', KEYS[1], at + ARGV[1], job) end
return due
"""


@dataclass(frozen=True, slots=True)
class Outbox:
    """The transactional outbox: ends of jobs and batches whose webhook is to be sent, entered by the step that ends
    them (serinette/jobs, serinette/batches/repository.py). A replica that takes an entry and dies leaves it to be taken
    again: at least once.

    One sorted set, `Keys.webhooks`: ids by the Unix second, by Redis's own clock, at which they are due.
    """

    redis: Redis
    keys: Keys

    def take(self, hidden_s: int, count: int) -> list[str]:
        """Up to `count` jobs and batches that are due; no other replica gets them within `hidden_s`."""
        due: Any = self.redis.register_script(_TAKE)([self.keys.webhooks], [hidden_s, count])
        return [job_id.decode() for job_id in due]

    def log(self, job_id: str, ended_at: str, delivery: Delivery, again_s: float | None) -> None:
        """Log one try on its job, unless that has another end by now; the next follows after `again_s`, or never."""
        outcome = "delivered" if delivery.delivered else "given_up" if again_s is None else "failed"
        counters.count(self.redis, self.keys, counters.WEBHOOKS, outcome)
        record, number = self._record_of(job_id), delivery.number
        logged = ("HSET", record, "deliveries", number, f"delivery:{number}", delivery.model_dump_json())
        over = ("ZREM", self.keys.webhooks, job_id)
        again: calls.Command = over
        if again_s is not None:
            again = ("ZADD", self.keys.webhooks, "XX", int(self.redis.time()[0]) + math.ceil(again_s), job_id)
        jobs = Jobs(self.redis, self.keys.prefix)
        if not jobs(calls.guarded([(("HGET", record, "ended_at"), ended_at)], [logged, again])):
            jobs(calls.guarded([(("EXISTS", record), 0)], [over]))

    def put_back(self, delays_s: Mapping[str, float]) -> None:
        """Have entries that were taken due again after so many seconds; that is no try."""
        if delays_s:
            at: Any = self.redis.time()
            due = {name: at[0] + math.ceil(delay_s) for name, delay_s in delays_s.items()}
            self.redis.zadd(self.keys.webhooks, due, xx=True)

    def drop(self, job_id: str) -> None:
        """Never send this one."""
        over, record = ("ZREM", self.keys.webhooks, job_id), self._record_of(job_id)
        jobs = Jobs(self.redis, self.keys.prefix)
        if not jobs(calls.guarded([(("EXISTS", record), 1)], [over, ("HSETNX", record, "deliveries", 0)])):
            jobs(calls.guarded([], [over]))

    def _record_of(self, name: str) -> str:
        """The hash in which the tries of a job or batch are logged."""
        return self.keys.batch(name) if is_batch_id(name) else self.keys.job(name)


# -- what is sent


@dataclass(frozen=True, slots=True)
class _End:
    """The end of one job or batch, where it is to be reported, and how often it was sent."""

    tenant: str
    webhook: str
    id: str
    type: str
    body: str
    tries: int
    ended_at: str  # as in Redis

    @property
    def host(self) -> str:
        """The target's host."""
        return urlsplit(self.webhook).hostname or ""


def _job_end(entry: Entry | None) -> _End | None:
    """None where it is reported nowhere any more, or by GET only."""
    if entry is None or entry.webhook is None or not entry.status.ended:
        return None
    job, tries = entry.job(), len(entry.deliveries)
    kind, ended_at = event_type(job.status), entry.fields["ended_at"]
    return _End(entry.tenant, entry.webhook, event_id(job.id, job.status), kind, _body(kind, job), tries, ended_at)


def _readable(name: str, end: Callable[[], _End | None]) -> _End | None:
    """None for a record that cannot be read: it must not keep those of others from being sent."""
    try:
        return end()
    except (KeyError, ValueError, TypeError):
        log.exception("%s cannot be read", name)
        return None


def _batch_end(record: BatchRecord | None) -> _End | None:
    if record is None or record.header.webhook is None or not record.status.ended:  # erased, or retried meanwhile
        return None
    kind, id = f"batch.{record.status}", f"{event_id(record.id, record.status)}_{record.round}"
    body, ended_at = _body(kind, record.batch()), record.ended_at.isoformat() if record.ended_at else ""
    return _End(record.header.tenant, record.header.webhook, id, kind, body, len(record.tries), ended_at)


def _body(kind: str, ended: Job | Batch) -> str:
    """As GET answers it, without the log of these very tries: the same bytes at every try."""
    data: dict[str, Any] = ended.model_dump(mode="json", exclude={"deliveries", "webhook"})
    at = ended.ended_at or ended.created_at
    return json.dumps({"type": kind, "timestamp": at.isoformat(), "data": data}, ensure_ascii=False)


# -- the duty


class Webhooks:
    """Sends what is due in the outbox, in a rolling window: a target that is slow, or of which there are many, holds up
    no other tenant's. Any number of replicas may do so at once: an entry is one replica's for as long as a try may
    take, and is another's only if that replica did not log how it went.
    """

    def __init__(self, redis: Redis, settings: ControllerSettings) -> None:
        self._settings = settings
        self._jobs = Jobs(redis, settings.redis_prefix)
        self._outbox = Outbox(redis, settings.keys)
        self._batches = BatchRepository(self._jobs, settings.keys, settings.retention_s)
        self._open_client = partial(open_client, Targets(settings.webhook_networks), settings.webhook_timeout_s)
        self._window = Window()
        self._sender: Sender | None = None
        self._sending: set[Future[None]] = set()
        self._kept: dict[str, tuple[float, _End]] = {}  # since when, by name

    def __call__(self) -> int:
        """Send what is due; how many tries began. Returns when none is under way, or after a while.

        Raises:
            RedisError: Redis does not answer.
        """
        until_s, count = time.monotonic() + _ROUND_S, 0
        hidden_s = int(self._settings.webhook_timeout_s) + _MARGIN_S
        while True:
            while len(self._kept) < _KEPT and (due := self._outbox.take(hidden_s, _TAKEN)):
                self._keep(due)
                count += self._begin()
            if self._sending and time.monotonic() < until_s:
                wait(self._sending, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
            ended = {one for one in self._sending if one.done()}
            self._sending -= ended
            for one in ended:
                one.result()  # raises what it raised
            count += self._begin()
            if not self._sending or time.monotonic() >= until_s:
                break
        if self._sender is not None and not self._sending:
            self._sender.close()
            self._sender = None
        return count

    def _keep(self, names: Sequence[str]) -> None:
        jobs = [name for name in names if not is_batch_id(name)]
        batches = (name for name in names if is_batch_id(name))
        ends = {name: _readable(name, partial(self._batch_end, name)) for name in batches}
        seen = self._jobs.joined(calls.looks(jobs))
        ends |= {name: _readable(name, partial(_job_end, one.entry)) for name, one in zip(jobs, seen, strict=True)}
        for name, end in ends.items():
            if end is None:
                self._drop(name)
            else:
                self._kept[name] = time.monotonic(), end

    def _batch_end(self, name: str) -> _End | None:
        return _batch_end(self._batches.read(name))

    def _begin(self) -> int:
        """Begin what the window allows, and put back what would wait for long; how many began."""
        later: dict[str, float] = {}
        of_tenant, begun, at_s = Counter[str](), 0, time.monotonic()
        self._window.begin_round(at_s)
        for name, (since_s, end) in list(self._kept.items()):
            wait_s = self._window.begin(end.tenant, end.host, at_s)
            of_tenant[end.tenant] += 1
            if wait_s is None:
                self._sender = self._sender or Sender(self._open_client)
                self._sending.add(self._sender.send(partial(self._send, name, end)))
                begun += 1
            elif max(wait_s, at_s - since_s) > _KEPT_S or of_tenant[end.tenant] > _KEPT_OF_TENANT:
                later[name] = wait_s
            else:
                continue
            del self._kept[name]
        self._outbox.put_back(later)
        return begun

    def _drop(self, name: str) -> None:
        log.warning("%s: its end is not delivered: it was erased, or there is no secret to sign with", name)
        self._outbox.drop(name)

    async def _send(self, name: str, end: _End, client: httpx.AsyncClient) -> None:
        began_s, answer = time.monotonic(), Answer(error="it was not sent")
        try:
            answer = await self._try(name, end, client)
        finally:
            at_s = time.monotonic()
            self._window.end(end.tenant, end.host, answered=answer.status is not None, took_s=at_s - began_s, at_s=at_s)

    async def _try(self, name: str, end: _End, client: httpx.AsyncClient) -> Answer:
        secrets = self._settings.signs_for(end.tenant)
        if not secrets:
            await asyncio.to_thread(self._drop, name)
            return Answer(status=0)  # which says nothing against the host
        at = now()
        # One for each secret: while they change, a receiver may know the old or the new one.
        signatures = [Webhook(secret.get_secret_value()).sign(end.id, at, end.body) for secret in secrets]
        headers = {
            "webhook-id": end.id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(signatures),
        }
        answer = await send(client, end.webhook, end.body, headers, end.tenant)
        if answer.counts:
            await asyncio.to_thread(self._log, name, end, at, answer)
        else:
            log.info("webhook of=%s not sent yet: %s", name, answer.error)
            await asyncio.to_thread(self._outbox.put_back, {name: _NO_ANSWER_S})
        return answer

    def _log(self, job_id: str, end: _End, at: datetime, answer: Answer) -> None:
        number = end.tries + 1
        again_s = (
            None if answer.final else pause_s(number, self._settings.webhook_attempts, self._settings.webhook_backoff_s)
        )
        delivery = Delivery(
            id=end.id,
            event=end.type,
            number=number,
            at=at,
            delivered=answer.delivered,
            status=answer.status,
            error=answer.error,
            next_at=None if again_s is None else now() + timedelta(seconds=again_s),
        )
        self._outbox.log(job_id, end.ended_at, delivery, again_s)
        how = "delivered" if answer.delivered else f"not delivered: {answer.error}"
        log.info("webhook of=%s try=%d %s", job_id, number, how)
