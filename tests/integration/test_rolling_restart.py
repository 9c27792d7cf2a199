"""Gateways and workers are replaced one after the other under load: only clients that were asked to retry notice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from serinette.leash import leashed
from serinette.presence import WorkerStage, present
from tests.gateways import RunningGateway, gateway
from tests.pod import Pod, pod
from tests.processes import eventually

CLIENTS = 3
SONG = {"duration_s": 1, "format": "wav"}
# As a Service withdraws a pod's address before the pod gets its SIGTERM (the chart's preStop waits for that).
WITHDRAWN_S = 0.5
CHANCE = random.Random(1)


@dataclass
class Front:
    """What a Service does: sends each request, over a connection of its own, to one of the gateways that serve."""

    serving: list[RunningGateway] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)  # why a client was asked to retry

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, repeated as long as its answer asks for it."""
        while True:
            try:
                answer = httpx.request(method, CHANCE.choice(self.serving).url + path, timeout=60, **options)
            except httpx.ConnectError:
                self.retried.append("refused")
                time.sleep(0.1)
                continue
            if answer.status_code not in {429, 503}:
                return answer
            self.retried.append(str(answer.status_code))
            time.sleep(float(answer.headers["retry-after"]))

    def follow(self, path: str, first: RunningGateway | None = None, begun: threading.Event | None = None) -> str:
        """A job's events to the last, resumed wherever the stream ends; the type of the last one."""
        headers: dict[str, str] = {}
        for number in count():
            url = (first if first and number == 0 else CHANCE.choice(self.serving)).url
            with httpx.stream("GET", f"{url}{path}/events", headers=headers, timeout=60) as answer:
                assert answer.status_code == 200, answer.read()
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        event = json.loads(line.removeprefix("data: "))
                        headers = {"Last-Event-ID": event["id"]}
                        if begun:
                            begun.set()
                        if event["type"] in {"succeeded", "failed", "canceled"}:
                            return str(event["type"])
            self.retried.append("stream")
        raise AssertionError


@dataclass
class Load:
    """Clients that submit, follow, wait and fetch, one song after the other. `errors`: what no retry was asked for."""

    front: Front
    songs: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self, client: int) -> None:
        for number in count():
            if self.stop.is_set():
                return
            try:
                self.generate(client, f"{client}-{number}", ("follow", "wait", "poll")[number % 3])
            except Exception as error:
                self.errors.append(repr(error))

    def generate(self, client: int, key: str, way: str) -> None:
        ask = self.front.ask
        song = {"prompt": f"slow {0.1 + client / 4}", **SONG}
        posted = ask("POST", "/v1/jobs", json=song, headers={"Idempotency-Key": key})
        assert posted.status_code == 202, posted.text
        path = posted.headers["location"]
        if way == "follow":
            assert self.front.follow(path) == "succeeded"
        while (job := ask("GET", path, headers={"Prefer": "wait=5"} if way == "wait" else {}).json())["status"] in {
            "queued",
            "running",
        }:
            time.sleep(0.1)
        assert (job["status"], [each["outcome"] for each in job["attempts"]]) == ("succeeded", ["succeeded"]), job
        song_bytes = ask("GET", f"{path}/audio", follow_redirects=True)
        assert song_bytes.content[:4] == b"RIFF", song_bytes.text
        self.songs.append(path)


@contextmanager
def controller(home: Pod) -> Iterator[None]:
    command = leashed([sys.executable, "-m", "controller"])
    with (home.directory / "controller.log").open("wb") as log:
        process = subprocess.Popen(command, env=home.environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ready(home: Pod) -> int:
    return sum(each.stage is WorkerStage.READY for each in present(home.redis, home.settings.keys))


def replace(front: Front, old: RunningGateway, new: RunningGateway) -> None:
    """The new one serves, the old one is withdrawn, and leaves; a stream that it had goes on elsewhere."""
    path = front.ask("POST", "/v1/jobs", json={"prompt": "slow 60", **SONG}).headers["location"]
    begun, ends = threading.Event(), []
    listener = threading.Thread(target=lambda: ends.append(front.follow(path, old, begun)))
    listener.start()
    assert begun.wait(30)
    front.serving[:] = [new, *(each for each in front.serving if each is not old)]
    time.sleep(WITHDRAWN_S)
    old.process.terminate()
    assert old.process.wait(40) == 0, old.log.read_text()
    assert front.ask("POST", f"{path}/cancel").status_code < 300
    listener.join(60)
    assert ends == ["canceled"]
    assert "stream" in front.retried


@pytest.mark.timeout(400)
def test_gateways_and_workers_are_replaced_under_load(tmp_path: Path, redis_url: str) -> None:
    random.seed(3)
    settings = {"drain_timeout_s": 30}
    with pod(tmp_path, redis_url, settings) as home, controller(home), ExitStack() as gateways:

        def another() -> RunningGateway:
            return gateways.enter_context(gateway(tmp_path, redis_url, home.environment["SERINETTE_STORE_URL"]))

        workers = [home.start(), home.start()]
        front = Front([another(), another()])
        assert eventually(lambda: ready(home) == 2, 120), home.log()
        load = Load(front)
        threads = [threading.Thread(target=load.run, args=(client,)) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            successors = [home.start(), home.start()]
            for old in tuple(front.serving):
                replace(front, old, another())
            assert eventually(lambda: ready(home) == 4, 120), home.log()
            for worker in workers:
                worker.terminate()
                assert worker.wait(60) == 0, home.log()
            assert all(worker.poll() is None for worker in successors)
            generated = len(load.songs)
            assert eventually(lambda: len(load.songs) > generated + CLIENTS or load.errors, 60)
        finally:
            load.stop.set()
            for thread in threads:
                thread.join(120)
        assert load.errors == []
        assert not any(thread.is_alive() for thread in threads)
        assert home.held() == home.lane().get_job_ids() == []
