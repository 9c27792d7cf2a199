"""The end of a job is sent to its webhook: once for each end, signed, again until it is taken, by any replica."""

from __future__ import annotations

import asyncio
import json
import threading
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
from controller.delivery_window import OF_HOST, OF_TENANT
from controller.settings import ControllerSettings
from controller.webhooks import Outbox, Webhooks
from serinette.errors import InvalidSpec, Unsupported
from serinette.job import Job, JobError, JobOptions, JobStatus, now
from serinette.jobs import AsyncJobs, calls
from serinette.names import Keys
from serinette.settings import connect_redis_async
from serinette.spec import GenerationSpec
from serinette.store import Store
from serinette.webhook import DELIVERY_DELAY_S, Delivery, event_id
from serinette.webhook_targets import NotLookedUp, Targets
from tests.gateways import HandSlot
from tests.jobs import Board
from tests.processes import eventually
from tests.receivers import SECRET, Receiver, receiver

ME = "default"
OTHER_SECRET = "whsec_" + "b3RoZXItdGVzdC1zZWNyZXQtMDAwMDAwMDE="


@dataclass
class WebhookBench:
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
def bench(redis: Redis, keys: Keys, file_store_url: str, redis_url: str) -> Iterator[WebhookBench]:
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
        yield WebhookBench(redis, store, keys, target, settings)


def succeed(bench: WebhookBench, job: Job) -> None:
    bench.slot.claim(job.id)
    bench.slot.succeed(job.id, [b"song"])


def fail(bench: WebhookBench, job: Job) -> None:
    bench.slot.claim(job.id)
    bench.slot.fail(job.id, JobError(code="timeout", message="too long"))


def cancel(bench: WebhookBench, job: Job) -> None:
    bench.board.cancel(job.id)


@pytest.mark.parametrize(
    ("end", "status"),
    [(succeed, JobStatus.SUCCEEDED), (fail, JobStatus.FAILED), (cancel, JobStatus.CANCELED)],
)
def test_every_end_is_sent_once_and_signed(
    bench: WebhookBench, end: Callable[[WebhookBench, Job], None], status: JobStatus
) -> None:
    job = bench.submit()
    assert bench.webhooks()() == 0  # nothing is sent of a job that has not ended
    end(bench, job)
    assert bench.webhooks()() == 1
    assert bench.webhooks()() == 0

    [came] = bench.target.came
    sent = Webhook(SECRET).verify(came.body, came.headers)
    assert sent["type"] == f"job.{status}"
    assert sent["data"]["id"] == job.id
    assert sent["data"]["status"] == status
    assert came.path == "/ended"
    assert came.headers["webhook-id"] == f"msg_{job.id}_{status}"
    assert came.headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER_SECRET).verify(came.body, came.headers)
    [delivery] = bench.job(job.id).deliveries
    assert delivery.delivered
    assert (delivery.number, delivery.status, delivery.next_at) == (1, 200, None)
    assert bench.redis.zcard(bench.keys.webhooks) == 0


def test_nothing_is_sent_that_a_redis_without_its_last_second_would_not_know(bench: WebhookBench) -> None:
    webhooks = bench.webhooks()
    job = bench.submit()
    cancel(bench, job)
    seconds, microseconds = bench.redis.time()
    due_s = bench.redis.zscore(bench.keys.webhooks, job.id)
    assert due_s is not None
    assert due_s - (seconds + microseconds / 1e6) > 1.5, "seconds that it is sent after the end, at least"
    if bench.redis.time()[0] < due_s:  # the machine was not asleep meanwhile
        assert webhooks() == 0


def test_what_is_sent_is_the_job_as_it_is_answered(bench: WebhookBench) -> None:
    job = bench.submit(labels={"album": "blue"})
    succeed(bench, job)
    bench.webhooks()()
    sent = json.loads(bench.target.came[0].body)
    answered = bench.job(job.id)
    shown = json.loads(answered.model_dump_json(exclude={"deliveries", "webhook"}))
    assert sent["data"] == shown
    assert answered.ended_at and sent["timestamp"] == answered.ended_at.isoformat()


def test_a_job_without_webhook_enters_no_outbox(bench: WebhookBench) -> None:
    job = bench.submit(webhook=None)
    succeed(bench, job)
    assert bench.redis.zcard(bench.keys.webhooks) == 0


def test_it_is_tried_again_with_the_same_id_until_it_is_taken(bench: WebhookBench) -> None:
    bench.target.answers = [503, 302]
    job = bench.submit()
    succeed(bench, job)
    for left in (2, 1, 0):
        assert bench.webhooks()() == 1
        assert bench.webhooks()() == 0  # not before its pause is over
        if left:
            bench.due_now(job.id)
    assert len(set(bench.target.ids)) == 1
    assert len({each.body for each in bench.target.came}) == 1
    deliveries = bench.job(job.id).deliveries
    assert [(each.number, each.status, each.delivered) for each in deliveries] == [
        (1, 503, False),
        (2, 302, False),
        (3, 200, True),
    ]
    assert deliveries[0].next_at
    assert (deliveries[0].next_at - deliveries[0].at).total_seconds() >= 5


def test_tries_end_and_the_log_stays(bench: WebhookBench) -> None:
    bench.target.answers = [500, 500, 500]
    job = bench.submit()
    succeed(bench, job)
    for _ in range(2):
        assert bench.webhooks(webhook_attempts=3)() == 1
        bench.due_now(job.id)
    assert bench.webhooks(webhook_attempts=3)() == 1
    assert bench.redis.zcard(bench.keys.webhooks) == 0
    last = bench.job(job.id).deliveries[-1]
    assert (last.number, last.delivered, last.next_at) == (3, False, None)
    assert last.error == "the target answered 500"


def test_a_target_that_is_gone_is_left_alone(bench: WebhookBench) -> None:
    bench.target.answers = [410]
    succeed(bench, bench.submit())
    bench.webhooks()()
    assert bench.redis.zcard(bench.keys.webhooks) == 0


def test_two_replicas_deliver_one_event_once(bench: WebhookBench) -> None:
    jobs = [bench.submit() for _ in range(10)]
    for job in jobs:
        succeed(bench, job)
    replicas = [bench.webhooks() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda each: each(), replicas))
    assert sum(counts) == 10
    assert len(bench.target.came) == len(set(bench.target.ids)) == 10


def test_a_replica_that_dies_in_the_middle_leaves_the_event_to_another(bench: WebhookBench) -> None:
    job = bench.submit()
    succeed(bench, job)
    bench.due_now(job.id)
    assert Outbox(bench.redis, bench.keys).take(30, 10) == [job.id]  # and then it dies
    assert bench.webhooks()() == 0  # hidden as long as the try may take
    bench.due_now(job.id)
    assert bench.webhooks()() == 1
    assert bench.target.ids == [f"msg_{job.id}_succeeded"]


def test_each_tenant_may_have_its_own_secret_and_secrets_overlap(bench: WebhookBench) -> None:
    bench.settings["webhook_secrets"] = {"acme": f"{OTHER_SECRET} {SECRET}"}
    job = bench.submit("acme")
    bench.slot.claim(job.id)
    bench.slot.succeed(job.id, [b"song"], tenant="acme")
    bench.webhooks()()
    [came] = bench.target.came
    for secret in (OTHER_SECRET, SECRET):  # a receiver with the old one, and one with the new one
        assert Webhook(secret).verify(came.body, came.headers)


def test_a_target_inside_is_refused_at_submit_and_nothing_is_kept(bench: WebhookBench) -> None:
    bench.settings["webhook_networks"] = ()
    with pytest.raises(InvalidSpec, match="public addresses only") as refused:
        bench.submit()
    assert refused.value.field == "webhook"
    assert "127.0.0.1" not in refused.value.message, "nothing is said of this network"
    assert bench.redis.dbsize() == 0


def test_a_target_that_is_inside_by_the_time_of_the_delivery_gets_nothing(bench: WebhookBench) -> None:
    job = bench.submit()
    succeed(bench, job)
    bench.webhooks(webhook_networks=())()
    assert not bench.target.came
    error = bench.job(job.id).deliveries[0].error
    assert error and "public addresses only" in error


def test_without_a_secret_there_are_no_webhooks(bench: WebhookBench) -> None:
    del bench.settings["webhook_secret"]
    with pytest.raises(Unsupported, match="SERINETTE_WEBHOOK_SECRET"):
        bench.submit()
    bench.settings["webhook_secrets"] = {"acme": SecretStr(OTHER_SECRET)}
    assert bench.submit("acme").webhook == bench.url


def test_an_end_that_cannot_be_signed_is_looked_at_once(bench: WebhookBench) -> None:
    job = bench.submit()
    succeed(bench, job)
    assert bench.webhooks(webhook_secret=None)() == 1
    assert bench.redis.zcard(bench.keys.webhooks) == 0
    assert not bench.target.came


def test_an_erased_job_is_not_sent(bench: WebhookBench) -> None:
    job = bench.submit()
    succeed(bench, job)
    assert bench.board.jobs(calls.erase(job.id, ME))
    bench.webhooks()()
    assert not bench.target.came
    assert not bench.redis.exists(bench.keys.job(job.id))
    assert bench.redis.zcard(bench.keys.webhooks) == 0


def test_a_try_that_outlasts_its_job_takes_no_end_of_the_next_with_its_id(bench: WebhookBench) -> None:
    outbox = Outbox(bench.redis, bench.keys)
    delivery = Delivery(id="w", event="job.canceled", number=1, at=now(), delivered=True)
    job_id, ends = bench.submit(key="k").id, []
    for _ in range(2):
        bench.board.cancel(job_id)
        ends.append(bench.board.entry(job_id).fields["ended_at"])
        if len(ends) == 1:
            assert bench.board.jobs(calls.erase(job_id, ME))
            assert bench.submit(key="k").id == job_id
    outbox.log(job_id, ends[0], delivery, None)
    assert bench.redis.zscore(bench.keys.webhooks, job_id) and not bench.board.entry(job_id).deliveries
    outbox.log(job_id, ends[1], delivery, None)
    assert not bench.redis.exists(bench.keys.webhooks)
    assert bench.board.entry(job_id).deliveries == (delivery,)


def test_of_two_submits_with_one_key_the_first_says_where_the_end_is_reported(bench: WebhookBench) -> None:
    first = bench.submit(key="k")
    again = bench.submit(key="k", webhook=None)
    assert again.id == first.id
    assert again.webhook == bench.url


def test_a_record_that_cannot_be_read_holds_up_no_other_end(bench: WebhookBench) -> None:
    spoilt, endless, well = bench.submit(), bench.submit(), bench.submit()
    for job in (spoilt, endless, well):
        succeed(bench, job)
    bench.redis.hset(bench.keys.job(spoilt.id), "result", "not JSON")
    bench.redis.hdel(bench.keys.job(endless.id), "ended_at")
    assert bench.webhooks()() == 1
    assert bench.target.ids == [f"msg_{well.id}_succeeded"]
    assert bench.redis.zcard(bench.keys.webhooks) == 0


def test_a_job_stays_whole_until_its_end_is_reported(bench: WebhookBench) -> None:
    job = bench.submit()
    succeed(bench, job)
    assert not bench.board.jobs(calls.shrink(bench.board.entry(job.id)))
    bench.webhooks()()
    assert bench.board.jobs(calls.shrink(bench.board.entry(job.id)))


def test_a_target_that_says_nothing_holds_up_no_other_tenants_end(bench: WebhookBench) -> None:
    said = threading.Event()
    with receiver() as silent, ThreadPoolExecutor(1) as duty:
        silent.meanwhile = lambda: said.wait(60)
        greedy = [bench.submit("greedy", webhook=f"http://127.1:{silent.port}/") for _ in range(70)]
        for job in greedy:
            bench.board.cancel(job.id)
        last = bench.submit()  # due behind all of them
        bench.board.cancel(last.id)
        webhooks = bench.webhooks()
        round_ = duty.submit(webhooks)
        try:
            assert eventually(lambda: bench.target.came)
            assert len(silent.came) <= OF_HOST < OF_TENANT
            assert not any(bench.job(job.id).deliveries for job in greedy), "it waited for none of them"
        finally:
            said.set()
        round_.result()
    assert bench.target.came[0].headers["webhook-id"] == event_id(last.id, "canceled")


def test_a_host_that_cannot_be_looked_up_at_the_moment_costs_no_try(
    bench: WebhookBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submit()
    bench.board.cancel(job.id)

    def later(*_: object) -> None:
        raise NotLookedUp("the host could not be looked up in time")

    with monkeypatch.context() as patched:
        patched.setattr(Targets, "addresses", later)
        bench.webhooks()()
    assert bench.job(job.id).deliveries == ()
    bench.due_now(job.id)
    bench.webhooks()()
    assert [delivery.delivered for delivery in bench.job(job.id).deliveries] == [True]
