"""From a submit over HTTP to a signed POST, on real processes: controller replicas, one killed as it delivers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
from redis import Redis
from standardwebhooks import Webhook

from serinette.settings import SharedSettings
from serinette.store import Store
from tests.gateways import HandSlot, gateway
from tests.processes import eventually
from tests.receivers import SECRET, receiver

RULES = {"webhook_secret": SECRET, "webhook_networks": '["127.0.0.0/8"]'}
TIMEOUT_S = 30


@contextmanager
def controller(directory: Path, redis_url: str, store_url: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m controller`; killed on the way out."""
    settings = {
        **RULES,
        "redis_url": redis_url,
        "store_url": store_url,
        "interval_s": 0.1,
        "lease_s": 2,
        "webhook_timeout_s": TIMEOUT_S,
        "webhook_backoff_s": 0.2,
    }
    environment = {**os.environ, **{f"SERINETTE_{key.upper()}": str(value) for key, value in settings.items()}}
    with (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "controller"], env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def deliveries(url: str, job_id: str) -> list[bool]:
    return [each["delivered"] for each in httpx.get(f"{url}/v1/jobs/{job_id}").json()["deliveries"]]


def generate(url: str, slot: HandSlot, hook: str) -> str:
    answer = httpx.post(f"{url}/v1/jobs", json={"prompt": "jazz", "webhook": hook})
    assert answer.status_code == 202, answer.text
    slot.claim(answer.json()["id"])
    slot.succeed(answer.json()["id"], [b"song"])
    return str(answer.json()["id"])


def test_an_end_is_delivered_though_the_target_fails_and_a_replica_dies(
    tmp_path: Path, redis_url: str, redis: Redis, file_store_url: str
) -> None:
    slot = HandSlot(redis, Store.open(SharedSettings(store_url=file_store_url)))
    frozen = threading.Event()
    with receiver() as target, gateway(tmp_path, redis_url, file_store_url, **RULES) as running:
        generated = partial(generate, running.url, slot, f"http://127.0.0.1:{target.port}/hook")
        with controller(tmp_path, redis_url, file_store_url, "first") as first:
            target.answers = [500, 503]
            job_id = generated()
            assert eventually(lambda: deliveries(running.url, job_id) == [False, False, True]), running.log.read_text()
            assert set(target.ids) == {f"msg_{job_id}_succeeded"}
            for came in target.came:
                assert Webhook(SECRET).verify(came.body, came.headers)["data"]["id"] == job_id

            target.came.clear()
            target.meanwhile = lambda: frozen.wait(TIMEOUT_S)
            other = generated()
            assert eventually(lambda: target.came)
            first.kill()  # it was delivered, and not logged
            first.wait()
        assert deliveries(running.url, other) == []
        target.meanwhile = lambda: None
        frozen.set()
        redis.zadd("rq:serinette:webhooks", {other: time.time()}, xx=True)  # instead of waiting until it is shown again
        with (
            controller(tmp_path, redis_url, file_store_url, "second"),
            controller(tmp_path, redis_url, file_store_url, "third"),
        ):
            assert eventually(lambda: deliveries(running.url, other) == [True])
            assert target.ids == [f"msg_{other}_succeeded"] * 2, "the receiver knows them for one by their id"
            many = [generated() for _ in range(20)]
            assert eventually(lambda: all(deliveries(running.url, each) == [True] for each in many))
        delivered = [json.loads(came.body)["data"]["id"] for came in target.came[2:]]
        assert sorted(delivered) == sorted(many), "two replicas, and each end once"
