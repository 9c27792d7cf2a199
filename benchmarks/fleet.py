"""A fleet of simulated workers on one real Valkey: what it costs the server, and where one server ends.

A simulated worker speaks the queue's own transitions and generates nothing: it announces itself, its slots claim, beat
and finish jobs in the rhythm of songs of 30 s. Beside it run the real sweeper and brake of two controllers, the reads
of KEDA, of two gateways and of Prometheus. All rhythms are `RATE` times those of a fleet of that size.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import multiprocessing
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis import Redis
from redis import asyncio as redis_asyncio

from api.queue.pool_status import MAX_AGE_S, PoolStatusReader
from benchmarks.peers.servers import append_only, durability_of, url_of
from benchmarks.record import Figures
from controller.autoscaling import Brakes
from controller.metrics import QueueCollector
from controller.settings import ControllerSettings
from controller.sweeper import Sweeper
from serinette.doctor.keda import entries
from serinette.job import JobStatus, Progress, Stage, now
from serinette.jobs import Claimed, Jobs, Lease, Outcome, calls
from serinette.names import DEFAULT_POOL, Keys, Lane
from serinette.presence import BEAT_S, Presence, WorkerStage, announce
from serinette.store import Store
from tests.jobs import submission

RATE = 2.0
SLOTS, SONG_S, BEATS = 2, 30.0, 12
HOLD_S = SLOTS * SONG_S / RATE  # a slot holds a job while its engine generates for the others, too
NAMES = ("claim", "beat", "finish", "presence", "sweep", "brake", "keda", "scrape")
KEDA_S, SCRAPE_S, REPLICAS, GATEWAYS = 5.0, 30.0, 2, 2
STEPS = (0.2, 0.6, 1.0)  # of the fleet, one after the other: the cost of a worker is the slope
THREADS = 32
FILL = 200
# One core is one Valkey's: beyond this share of it waits grow.
FULL = 0.7
KEPT_UP = 0.95

Action = Callable[[], float | None]  # one call; the pause until the next one, None: it was the last


class Rhythm:
    """Does actions at their times, by threads. Not a worker each: what is measured is Valkey."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, str, Action]] = []
        self._number = count()
        self._changed = threading.Condition()
        self._ended = False
        self.took_s: dict[str, list[float]] = {name: [] for name in NAMES}
        self.late_s: list[float] = []

    def add(self, name: str, action: Action, after_s: float) -> None:
        """Do this then, and again as it says."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + after_s, next(self._number), name, action))
            self._changed.notify()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Do what is due, meanwhile."""
        with ThreadPoolExecutor(THREADS) as pool:
            futures: list[Future[None]] = [pool.submit(self._work) for _ in range(THREADS)]
            try:
                yield
            finally:
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()
            for future in futures:
                future.result()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._ended and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._ended:
                    return
                due_s, _, name, action = heapq.heappop(self._due)
            began_s = time.monotonic()
            pause_s = action()
            self.took_s[name].append(time.monotonic() - began_s)
            self.late_s.append(began_s - due_s)
            if pause_s is not None:
                self.add(name, action, max(0.0, due_s + pause_s - time.monotonic()))


class Slot:
    """Claims, beats and finishes, without an engine."""

    def __init__(self, jobs: Jobs, name: str, rhythm: Rhythm) -> None:
        self._jobs = jobs
        self._lease = Lease(name, 20.0)
        self._rhythm = rhythm

    def claim(self) -> float | None:
        """Begin the next job; without one, look again in a second."""
        found = self._jobs(calls.claim(uuid4().hex, self._lease, DEFAULT_POOL, list(Lane)))
        if not isinstance(found, Claimed):
            return 1.0 / RATE
        job_id, attempt_id, left = found.entry.id, found.entry.owner or "", count(1)
        pause_s = HOLD_S / (BEATS + 1)

        def beat() -> float | None:
            step = next(left)
            progress = Progress(stage=Stage.DENOISING, step=step, steps=BEATS, engine_s=float(step), at=now())
            self._jobs(calls.beat(job_id, attempt_id, self._lease, progress.model_dump_json()))
            if step < BEATS:
                return pause_s
            self._rhythm.add("finish", finish, pause_s)
            return None

        def finish() -> None:
            self._jobs(calls.finish(job_id, attempt_id, Outcome(JobStatus.SUCCEEDED), recorded=True, by=attempt_id))
            self._rhythm.add("claim", self.claim, 0.0)

        self._rhythm.add("beat", beat, pause_s)
        return None


def fill(jobs: Jobs, number: int) -> float:
    """Submit so many jobs; seconds."""
    began_s = time.monotonic()
    for first in range(0, number, FILL):
        jobs.many([calls.submit(submission()) for _ in range(min(FILL, number - first))])
    return time.monotonic() - began_s


@contextmanager
def listeners(redis: Redis, keys: Keys, number: int) -> Iterator[None]:
    """A connection for each slot that hears of cancels."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, number + 1_000)), hard))
    port = int(redis.connection_pool.connection_kwargs["port"])
    sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(number)]
    try:
        for each in sockets:
            each.sendall(f"SUBSCRIBE {keys.cancels}\r\n".encode())
        yield
    finally:
        for each in sockets:
            each.close()


def _read_pools(redis_url: str, prefix: str) -> None:
    """What a gateway under load reads of the pools: as often as it may."""

    async def read() -> None:
        reader = PoolStatusReader(redis_asyncio.Redis.from_url(redis_url, decode_responses=True), Keys(prefix))
        while True:
            await reader.read([DEFAULT_POOL], fresh=True)
            await asyncio.sleep(MAX_AGE_S / RATE)

    asyncio.run(read())


@contextmanager
def gateways(redis_url: str, keys: Keys) -> Iterator[None]:
    """Each in a process of its own, as it parses what every worker reports."""
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_read_pools, args=(redis_url, keys.prefix), daemon=True) for _ in range(GATEWAYS)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def others(redis: Redis, settings: ControllerSettings, store: Store, rhythm: Rhythm) -> None:
    """Sweepers, brake, KEDA and Prometheus."""
    keys = settings.keys
    read = [keys.waiting(DEFAULT_POOL, lane) for lane in Lane] + [keys.busy(DEFAULT_POOL), keys.brake(DEFAULT_POOL)]
    brakes, collector = Brakes(redis, store, settings), QueueCollector(redis, keys, lambda: True)

    def every(seconds: float, what: Callable[[], object]) -> Action:
        def once() -> float:
            what()
            return seconds / RATE

        return once

    for sweeper in [Sweeper(redis, store, settings) for _ in range(REPLICAS)]:
        rhythm.add("sweep", every(settings.interval_s, sweeper), 0.0)
    rhythm.add("brake", every(settings.interval_s, brakes), 0.0)
    rhythm.add("keda", every(KEDA_S, lambda: [entries(redis, key) for key in read]), 0.0)
    rhythm.add("scrape", every(SCRAPE_S, lambda: list(collector.collect())), 0.0)


class Fleet:
    """Workers that grow in number, and all that runs beside them."""

    def __init__(self, redis: Redis, directory: Path) -> None:
        url = url_of(redis)
        self._settings = ControllerSettings.model_validate(
            {"redis_url": url, "store_url": f"file://{directory}/store", "pools": [{"name": DEFAULT_POOL}]}
        )
        self._redis, self._jobs = redis, Jobs(redis, self._settings.redis_prefix)
        self._keys, self._workers, self.rhythm = self._settings.keys, 0, Rhythm()
        others(redis, self._settings, Store.open(self._settings), self.rhythm)

    def grow(self, workers: int) -> None:
        """Up to so many; what they do is spread over the time that a slot holds a job."""
        for number in range(self._workers, workers):
            name, share = f"pod-{number}-{uuid4().hex[:6]}", (number - self._workers) / (workers - self._workers)
            seen = Presence(name=name, pool=DEFAULT_POOL, stage=WorkerStage.READY, slots=SLOTS, started_at=now())
            self.rhythm.add("presence", _announcing(self._redis, self._keys, seen), share * BEAT_S / RATE)
            for slot in range(SLOTS):
                claim = Slot(self._jobs, f"{name}.{slot}.abcdef", self.rhythm).claim
                self.rhythm.add("claim", claim, (share + slot) * HOLD_S / SLOTS)
        self._workers = workers

    def measured(self, seconds: float) -> Figures:
        """What this fleet takes of Valkey for so long, once every slot holds a job."""
        with listeners(self._redis, self._keys, self._workers * SLOTS):
            time.sleep(HOLD_S)
            done, late = {name: len(took) for name, took in self.rhythm.took_s.items()}, len(self.rhythm.late_s)
            before, began_s = _used(self._redis), time.monotonic()
            time.sleep(seconds)
            after, wall_s = _used(self._redis), time.monotonic() - began_s
        took = {name: took[done[name] :] for name, took in self.rhythm.took_s.items()}
        return {
            "workers": self._workers,
            "wall_s": round(wall_s, 1),
            "cpu_share": round((after["cpu_s"] - before["cpu_s"]) / wall_s, 4),
            "commands_per_s": round((after["commands"] - before["commands"]) / wall_s, 1),
            "connections": after["connections"],
            "claims_per_s": round(len(took["claim"]) / wall_s, 2),
            "claims_wanted_per_s": round(self._workers * RATE / SONG_S, 2),
            "late_ms": _percentiles(self.rhythm.late_s[late:]),
            "took_ms": {name: _percentiles(each) for name, each in took.items() if each},
        }


def _announcing(redis: Redis, keys: Keys, seen: Presence) -> Action:
    def once() -> float:
        announce(redis, keys, seen.model_copy(update={"at": now()}))
        return BEAT_S / RATE

    return once


def _used(redis: Redis) -> dict[str, float]:
    found: Any = redis.info("everything")
    cpu_s = float(found["used_cpu_sys"]) + float(found["used_cpu_user"])
    return {"cpu_s": cpu_s, "commands": found["total_commands_processed"], "connections": found["connected_clients"]}


def _percentiles(seconds: list[float]) -> Figures:
    ordered = sorted(1000 * each for each in seconds)
    return {f"p{p}": round(ordered[min(len(ordered) - 1, p * len(ordered) // 100)], 2) for p in (50, 95, 99)}


def slope(steps: list[Figures], figure: str) -> float:
    """What one more worker adds, by least squares."""
    at = [each["workers"] for each in steps]
    of = [each[figure] for each in steps]
    mean_at, mean_of = sum(at) / len(at), sum(of) / len(of)
    above = sum((x - mean_at) * (y - mean_of) for x, y in zip(at, of, strict=True))
    return float(above / (sum((x - mean_at) ** 2 for x in at) or 1))


def judged(steps: list[Figures]) -> Figures:
    """What 100 workers cost at the single rate, and how many one Valkey serves."""
    cpu, commands = slope(steps, "cpu_share") / RATE, slope(steps, "commands_per_s") / RATE
    most = steps[-1]
    rest = max(0.0, (most["cpu_share"] - RATE * cpu * most["workers"]) / RATE)
    return {
        "cpu_share_per_100_workers": round(100 * cpu, 4),
        "commands_per_s_per_100_workers": round(100 * commands, 1),
        "cpu_share_of_the_rest": round(rest, 4),
        "workers_until_full": round((FULL - rest) / cpu) if cpu > 0 else None,
        "full_cpu_share": FULL,
        "claims_kept_up": round(most["claims_per_s"] / most["claims_wanted_per_s"], 3),
    }


def measure(workers: int = 500, jobs: int = 100_000, round_s: float = 60.0, appendfsync: str = "always") -> Figures:
    """Fill the queue, and let the fleet grow in steps."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory, append_only(Path(directory) / "valkey", appendfsync) as redis:
        fill_s = fill(Jobs(redis, Keys().prefix), jobs)
        memory: Any = redis.info("memory")
        fleet, steps = Fleet(redis, Path(directory)), []
        with fleet.rhythm.running(), gateways(url_of(redis), Keys()):
            for share in STEPS:
                fleet.grow(max(1, round(share * workers)))
                steps.append(fleet.measured(round_s))
        found = judged(steps)
        if found["claims_kept_up"] < KEPT_UP:
            raise RuntimeError(
                f"only {found['claims_kept_up']:.0%} of the claims were made in time: this machine is too busy to "
                f"imitate {workers} workers (load of {os.getloadavg()[0]:.0f}), and says nothing of Valkey"
            )
        left = sum(int(redis.zcard(Keys().waiting(DEFAULT_POOL, lane))) for lane in Lane)
        return {
            "rate": RATE,
            "slots": SLOTS,
            "song_s": SONG_S,
            "beats": BEATS,
            "jobs": jobs,
            "filled_per_s": round(jobs / fill_s, 1),
            "memory_bytes": int(memory["used_memory"]),
            "left": left,
            "valkey": durability_of(redis),
            "steps": steps,
            **found,
        }
