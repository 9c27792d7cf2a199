"""A long batch through gateway, controller, a real Valkey and quick slots: memory, others' waits, deaths."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis import Redis

from serinette.leash import leashed
from serinette.names import Keys, Lane
from serinette.spec import GenerationSpec
from tests.jobs import Board
from tests.processes import eventually
from tests.stack import Stack, running

SLOTS = 4
RETENTION_S = 120
# As the chart sets it for 25 workers with 2 slots each: 200 lines wait.
POOLS = json.dumps([{"name": "default", "max_workers": 25, "slots": 2}])
SHARED = {
    "SERINETTE_RETENTION_S": str(RETENTION_S),
    "SERINETTE_RETENTION_INTERVAL_S": "20",
    "SERINETTE_INTERVAL_S": "0.5",
    "SERINETTE_POOLS": POOLS,
}
_MIB = 2**20


@dataclass
class Run:
    """What was seen of one batch."""

    lines: int
    batch: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    waits_idle_s: list[float] = field(default_factory=list)
    waits_busy_s: list[float] = field(default_factory=list)
    waits_batch_s: list[float] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    begun: Counter[str] = field(default_factory=Counter)

    def during(self, name: str, first: float, last: float) -> float:
        """The highest of a figure between two shares of the batch."""
        found = [sample[name] for sample in self.samples if first <= sample["fraction"] <= last and sample[name]]
        return max(found, default=0.0)

    def cpu_ms_per_line(self, name: str, first: float, last: float) -> float:
        """What a process computed between two shares of the batch, for each line; it lived from one to the other."""
        begin, *_, end = [sample for sample in self.samples if first <= sample["fraction"] <= last]
        lines = (end["fraction"] - begin["fraction"]) * self.lines
        return (end[f"{name}_cpu_s"] - begin[f"{name}_cpu_s"]) / lines * 1_000


def wait_s(url: str) -> float:
    """How long an interactive song waits for its slot."""
    job = httpx.post(f"{url}/v1/jobs", json={"prompt": "now"}, headers={"Prefer": "wait=50"}, timeout=90).json()
    assert job["status"] == "succeeded", job
    return float(job["usage"]["queue_s"])


@contextmanager
def quick_slots(stack: Stack, song_s: float) -> Iterator[Path]:
    """The slots, and the log of what they began."""
    log = stack.directory / "begun"
    command = [
        sys.executable,
        "-m",
        "tests.load.quick_slots",
        stack.redis_url,
        stack.environment["SERINETTE_STORE_URL"],
    ]
    process = subprocess.Popen(leashed([*command, str(log), str(song_s), str(SLOTS)]))
    try:
        yield log
    finally:
        process.kill()
        process.wait()


def long_batch(directory: Path, lines: int, song_s: float, others: int, asides: Sequence[float]) -> Run:
    """Run a batch, its gateway killed at a half and its controller at three quarters.

    `others`: waits measured of interactive songs on idle slots, and as many again each time that the batch is paused,
    at shares `asides` of it, on slots that a few ordinary songs of the lowest lane keep busy: what else the machine
    does then weighs on both alike.
    """
    run = Run(lines)
    with running(directory, shared=SHARED, parts=("gateway", "controller")) as stack:
        with quick_slots(stack, song_s) as log:
            run.waits_idle_s = [wait_s(stack.url) for _ in range(others)]

            def aside() -> None:
                with paused(stack, run.batch["id"]), busy(stack, song_s):
                    run.waits_busy_s += [wait_s(stack.url) for _ in range(others)]

            _run(stack, run, aside, list(asides))
        batch_id = run.batch["id"]
        for name, found in (("output", run.output), ("errors", run.errors)):
            text = httpx.get(f"{stack.url}/v1/batches/{batch_id}/{name}.jsonl", timeout=120).raise_for_status().text
            found.extend(json.loads(line) for line in text.splitlines())
        run.begun = Counter(log.read_text().splitlines())
    return run


@contextmanager
def busy(stack: Stack, song_s: float) -> Iterator[None]:
    """Ordinary songs in the lowest lane, as many as keep the slots busy."""
    over = threading.Event()

    def feed() -> None:
        keys = Keys()
        with Redis.from_url(stack.redis_url) as redis:
            board, spec = Board(redis, keys), GenerationSpec(prompt="low", seed=1)
            while not over.wait(song_s / SLOTS):
                while int(redis.zcard(keys.waiting("default", Lane.LOW))) < 3 * SLOTS:
                    board.submit(None, spec, lane=Lane.LOW, ttl_s=RETENTION_S)

    feeding = threading.Thread(target=feed)
    feeding.start()
    time.sleep(1)
    try:
        yield
    finally:
        over.set()
        feeding.join()


@contextmanager
def paused(stack: Stack, batch_id: str) -> Iterator[None]:
    """A batch of which nothing waits and nothing is generated; afterwards it waits again."""
    batch = f"{stack.url}/v1/batches/{batch_id}"

    def waiting() -> int:
        counts = httpx.get(batch, timeout=60).json()["request_counts"]
        return int(counts["queued"]) + int(counts["running"])

    httpx.post(f"{batch}/pause", timeout=60).raise_for_status()
    assert eventually(lambda: not waiting(), 120)
    yield
    httpx.post(f"{batch}/resume", timeout=60).raise_for_status()
    assert eventually(waiting, 120)


def _run(stack: Stack, run: Run, aside: Callable[[], None], asides: list[float]) -> None:
    specs = ({"prompt": "wrong" if n % 1_000 == 7 else "la", "custom_id": f"c{n}"} for n in range(1, run.lines + 1))
    body = "".join(f"{json.dumps(spec)}\n" for spec in specs)
    headers = {"Content-Type": "application/jsonl", "Idempotency-Key": "long"}
    sent = httpx.post(f"{stack.url}/v1/batches", content=body, headers=headers, timeout=300)
    assert sent.status_code == 202, sent.text
    run.batch, began = sent.json(), time.monotonic()
    deaths = [("gateway", 0.5), ("controller", 0.75)]
    with Redis.from_url(stack.redis_url) as redis:
        while run.batch["status"] not in {"completed", "canceled"}:
            with suppress(httpx.HTTPError):
                run.batch = httpx.get(f"{stack.url}/v1/batches/{run.batch['id']}", timeout=60).json()
                run.waits_batch_s.append(wait_s(stack.url))
            run.samples.append(_sample(stack, redis, run.batch["fraction"]))
            if asides and run.batch["fraction"] >= asides[0]:
                asides.pop(0)
                aside()
            if deaths and run.batch["fraction"] >= deaths[0][1]:
                run.killed.append(_kill(stack, deaths.pop(0)[0]))
            time.sleep(0.5)
    run.seconds = time.monotonic() - began
    # The same request again is the same batch, also from a gateway that never saw the first.
    again = httpx.post(f"{stack.url}/v1/batches", content=body, headers=headers, timeout=300)
    assert (again.status_code, again.json()["id"]) == (202, run.batch["id"]), again.text


def _kill(stack: Stack, name: str) -> str:
    process = stack.processes.pop(name)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    stack.start(name)
    stack.wait_health(loaded=False)
    return name


def _sample(stack: Stack, redis: Redis, fraction: float) -> dict[str, float]:
    memory: Any = redis.info("memory")
    waiting: Any = redis.zcard(Keys().waiting("default", Lane.LOW))
    keys: Any = redis.dbsize()
    sample = {"fraction": fraction, "redis_mib": memory["used_memory"] / _MIB, "waiting": float(waiting)}
    # What Redis holds follows how many songs ended within the retention, and so the machine's speed; a key's share not.
    sample["redis_kib_per_key"] = memory["used_memory"] / 1024 / max(keys, 1)
    for name, process in stack.processes.items():
        with suppress(psutil.Error):
            seen = psutil.Process(process.pid)
            sample[f"{name}_mib"] = seen.memory_info().rss / _MIB
            sample[f"{name}_cpu_s"] = sum(seen.cpu_times()[:2])
    return {"gateway_mib": 0.0, "controller_mib": 0.0} | sample


def median_ms(waits_s: list[float]) -> float:
    """Of some waits."""
    return statistics.median(waits_s) * 1_000


def assert_whole(run: Run) -> None:
    """Every line ended once, was begun once, and is reported once."""
    wrong = [number for number in range(1, run.lines + 1) if number % 1_000 == 7]
    assert run.batch["status"] == "completed"
    assert run.killed == ["gateway", "controller"]
    assert [line["line"] for line in run.errors] == wrong
    assert [line["line"] for line in run.output] == [n for n in range(1, run.lines + 1) if n % 1_000 != 7]
    counts = run.batch["request_counts"]
    assert (counts["completed"], counts["failed"]) == (run.lines - len(wrong), len(wrong))
    jobs = [line["job_id"] for line in [*run.output, *run.errors]]
    assert len(set(jobs)) == run.lines
    assert {run.begun[job_id] for job_id in jobs} == {1}
    assert all(line["custom_id"] == f"c{line['line']}" for line in [*run.output, *run.errors])
