"""The end of a job is sent to its webhook: once for each end, signed, again until it is taken, by any replica."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis
from standardwebhooks import Webhook, WebhookVerificationError

from api.queue import JobQueue
from api.settings import GatewaySettings
from controller.outbox import Outbox
from controller.settings import ControllerSettings
from controller.webhooks import Webhooks
from serinette.errors import InvalidSpec, Unsupported
from serinette.job import Job, JobError, JobOptions, JobStatus
from serinette.jobs import AsyncJobs, calls
from serinette.names import Keys
from serinette.settings import connect_redis_async
from serinette.spec import GenerationSpec
from serinette.store import Store
from serinette.webhook import DELIVERY_DELAY_S
from tests.gateways import HandSlot
from tests.jobs import Board
from tests.receivers import SECRET, Receiver, receiver

ME = "default"
OTHER_SECRET = "whsec_" + "b3RoZXItdGVzdC1zZWNyZXQtMDAwMDAwMDE="


@dataclass
class House:
    """A gateway's queue, a slot moved by hand, and the controller's duty."""

    redis: Redis
    store: Store
    keys: Keys
    target: Receiver
    settings: dict[str, Any]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.target.port}/ended"

    @property
    def board(self) -> Board:
        return Board(self.redis, self.keys)

    def submit(self, tenant: str = ME, **options: Any) -> Job:
        """As the gateway does, with all that it refuses."""

        async def submitted() -> Job:
            settings = GatewaySettings.model_validate(self.settings)
            client = connect_redis_async(settings)
            async with client:
                queue = JobQueue(AsyncJobs(client, settings.redis_prefix), self.store, settings)
                key = options.pop("key", None)
                wanted = JobOptions.model_validate({"webhook": self.url, **options})
                spec = GenerationSpec(prompt="jazz")
                return (await queue.submit(tenant, spec, wanted, idempotency_key=key))[0]

        return asyncio.run(submitted())

    def job(self, job_id: str) -> Job:
        return self.board.entry(job_id).job()

    def webhooks(self, **settings: object) -> Webhooks:
        """Some that need not wait for what has just ended; later tries have longer pauses."""
        at_s = int(self.redis.time()[0])
        fresh: Any = self.redis.zrangebyscore(self.keys.webhooks, at_s, at_s + DELIVERY_DELAY_S + 1)
        for job_id in fresh:
            self.redis.zadd(self.keys.webhooks, {job_id: at_s})
        return Webhooks(self.redis, ControllerSettings.model_validate({**self.settings, **settings}))

    def due_now(self, job_id: str) -> None:
        """Let the pause before the next try pass."""
        assert self.redis.zadd(self.keys.webhooks, {job_id: 1}, xx=True, ch=True) == 1

    @property
    def slot(self) -> HandSlot:
        return HandSlot(self.redis, self.store, self.keys)


@pytest.fixture
def house(redis: Redis, keys: Keys, file_store_url: str, redis_url: str) -> Iterator[House]:
    settings = {
        "redis_url": redis_url,
        "store_url": file_store_url,
        "webhook_secret": SECRET,
        "webhook_networks": ("127.0.0.0/8",),
        "webhook_timeout_s": 5,
        # Far beyond what `webhooks` makes due at once, on a machine that slept for some seconds too.
        "webhook_backoff_s": 60,
    }
    store = Store.open(GatewaySettings.model_validate(settings))
    with receiver() as target:
        yield House(redis, store, keys, target, settings)


def succeed(house: House, job: Job) -> None:
    house.slot.claim(job.id)
    house.slot.succeed(job.id, [b"song"])


def fail(house: House, job: Job) -> None:
    house.slot.claim(job.id)
    house.slot.fail(job.id, JobError(code="timeout", message="too long"))


def cancel(house: House, job: Job) -> None:
    house.board.cancel(job.id)


@pytest.mark.parametrize(
    ("end", "status"),
    [(succeed, JobStatus.SUCCEEDED), (fail, JobStatus.FAILED), (cancel, JobStatus.CANCELED)],
)
def test_every_end_is_sent_once_and_signed(house: House, end: Callable[[House, Job], None], status: JobStatus) -> None:
    job = house.submit()
    assert house.webhooks()() == 0  # nothing is sent of a job that has not ended
    end(house, job)
    assert house.webhooks()() == 1
    assert house.webhooks()() == 0

    [came] = house.target.came
    sent = Webhook(SECRET).verify(came.body, came.headers)
    assert sent["type"] == f"job.{status}"
    assert sent["data"]["id"] == job.id
    assert sent["data"]["status"] == status
    assert came.path == "/ended"
    assert came.headers["webhook-id"] == f"msg_{job.id}_{status}"
    assert came.headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER_SECRET).verify(came.body, came.headers)
    [delivery] = house.job(job.id).deliveries
    assert delivery.delivered
    assert (delivery.number, delivery.status, delivery.next_at) == (1, 200, None)
    assert house.redis.zcard(house.keys.webhooks) == 0


def test_nothing_is_sent_that_a_redis_without_its_last_second_would_not_know(house: House) -> None:
    webhooks = house.webhooks()
    job = house.submit()
    cancel(house, job)
    seconds, microseconds = house.redis.time()
    due_s = house.redis.zscore(house.keys.webhooks, job.id)
    assert due_s is not None
    assert due_s - (seconds + microseconds / 1e6) > 1.5, "seconds that it is sent after the end, at least"
    if house.redis.time()[0] < due_s:  # the machine was not asleep meanwhile
        assert webhooks() == 0


def test_what_is_sent_is_the_job_as_it_is_answered(house: House) -> None:
    job = house.submit(labels={"album": "blue"})
    succeed(house, job)
    house.webhooks()()
    sent = json.loads(house.target.came[0].body)
    answered = house.job(job.id)
    shown = json.loads(answered.model_dump_json(exclude={"deliveries", "webhook"}))
    assert sent["data"] == shown
    assert answered.ended_at
    assert sent["timestamp"] == answered.ended_at.isoformat()


def test_a_job_without_webhook_enters_no_outbox(house: House) -> None:
    job = house.submit(webhook=None)
    succeed(house, job)
    assert house.redis.zcard(house.keys.webhooks) == 0


def test_it_is_tried_again_with_the_same_id_until_it_is_taken(house: House) -> None:
    house.target.answers = [503, 302]
    job = house.submit()
    succeed(house, job)
    for left in (2, 1, 0):
        assert house.webhooks()() == 1
        assert house.webhooks()() == 0  # not before its pause is over
        if left:
            house.due_now(job.id)
    assert len(set(house.target.ids)) == 1
    assert len({each.body for each in house.target.came}) == 1
    deliveries = house.job(job.id).deliveries
    assert [(each.number, each.status, each.delivered) for each in deliveries] == [
        (1, 503, False),
        (2, 302, False),
        (3, 200, True),
    ]
    assert deliveries[0].next_at
    assert (deliveries[0].next_at - deliveries[0].at).total_seconds() >= 5


def test_tries_end_and_the_log_stays(house: House) -> None:
    house.target.answers = [500, 500, 500]
    job = house.submit()
    succeed(house, job)
    for _ in range(2):
        assert house.webhooks(webhook_attempts=3)() == 1
        house.due_now(job.id)
    assert house.webhooks(webhook_attempts=3)() == 1
    assert house.redis.zcard(house.keys.webhooks) == 0
    last = house.job(job.id).deliveries[-1]
    assert (last.number, last.delivered, last.next_at) == (3, False, None)
    assert last.error == "the target answered 500"


def test_a_target_that_is_gone_is_left_alone(house: House) -> None:
    house.target.answers = [410]
    succeed(house, house.submit())
    house.webhooks()()
    assert house.redis.zcard(house.keys.webhooks) == 0


def test_two_replicas_deliver_one_event_once(house: House) -> None:
    jobs = [house.submit() for _ in range(10)]
    for job in jobs:
        succeed(house, job)
    replicas = [house.webhooks() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda each: each(), replicas))
    assert sum(counts) == 10
    assert len(house.target.came) == len(set(house.target.ids)) == 10


def test_a_replica_that_dies_in_the_middle_leaves_the_event_to_another(house: House) -> None:
    job = house.submit()
    succeed(house, job)
    house.due_now(job.id)
    assert Outbox(house.redis, house.keys).take(30, 10) == [job.id]  # and then it dies
    assert house.webhooks()() == 0  # hidden as long as the try may take
    house.due_now(job.id)
    assert house.webhooks()() == 1
    assert house.target.ids == [f"msg_{job.id}_succeeded"]


def test_each_tenant_may_have_its_own_secret_and_secrets_overlap(house: House) -> None:
    house.settings["webhook_secrets"] = {"acme": f"{OTHER_SECRET} {SECRET}"}
    job = house.submit("acme")
    house.slot.claim(job.id)
    house.slot.succeed(job.id, [b"song"], tenant="acme")
    house.webhooks()()
    [came] = house.target.came
    for secret in (OTHER_SECRET, SECRET):  # a receiver with the old one, and one with the new one
        assert Webhook(secret).verify(came.body, came.headers)


def test_a_target_inside_is_refused_at_submit_and_nothing_is_kept(house: House) -> None:
    house.settings["webhook_networks"] = ()
    with pytest.raises(InvalidSpec, match="public addresses only") as refused:
        house.submit()
    assert refused.value.field == "webhook"
    assert house.redis.dbsize() == 0


def test_a_target_that_is_inside_by_the_time_of_the_delivery_gets_nothing(house: House) -> None:
    job = house.submit()
    succeed(house, job)
    house.webhooks(webhook_networks=())()
    assert not house.target.came
    error = house.job(job.id).deliveries[0].error
    assert error and "public addresses only" in error


def test_without_a_secret_there_are_no_webhooks(house: House) -> None:
    del house.settings["webhook_secret"]
    with pytest.raises(Unsupported, match="SERINETTE_WEBHOOK_SECRET"):
        house.submit()
    house.settings["webhook_secrets"] = {"acme": SecretStr(OTHER_SECRET)}
    assert house.submit("acme").webhook == house.url


def test_an_end_that_cannot_be_signed_is_looked_at_once(house: House) -> None:
    job = house.submit()
    succeed(house, job)
    assert house.webhooks(webhook_secret=None)() == 1
    assert house.redis.zcard(house.keys.webhooks) == 0
    assert not house.target.came


def test_an_erased_job_is_not_sent(house: House) -> None:
    job = house.submit()
    succeed(house, job)
    assert house.board.jobs(calls.erase(job.id, ME))
    house.webhooks()()
    assert not house.target.came
    assert not house.redis.exists(house.keys.job(job.id))
    assert house.redis.zcard(house.keys.webhooks) == 0


def test_of_two_submits_with_one_key_the_first_says_where_the_end_is_reported(house: House) -> None:
    first = house.submit(key="k")
    again = house.submit(key="k", webhook=None)
    assert again.id == first.id
    assert again.webhook == house.url


def test_a_record_that_cannot_be_read_holds_up_no_other_end(house: House) -> None:
    spoilt, well = house.submit(), house.submit()
    for job in (spoilt, well):
        succeed(house, job)
    house.redis.hset(house.keys.job(spoilt.id), "result", "not JSON")
    assert house.webhooks()() == 2
    assert house.target.ids == [f"msg_{well.id}_succeeded"]
    assert house.redis.zcard(house.keys.webhooks) == 0


def test_a_job_stays_whole_until_its_end_is_reported(house: House) -> None:
    job = house.submit()
    succeed(house, job)
    assert not house.board.jobs(calls.shrink(house.board.entry(job.id)))
    house.webhooks()()
    assert house.board.jobs(calls.shrink(house.board.entry(job.id)))
