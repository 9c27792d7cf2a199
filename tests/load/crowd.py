"""Many jobs that end in every way there is, and what Redis and the store hold once all are forgotten.

Gateway, slot and controller are the real classes in one process, on a real Valkey and a directory store; only the
engine is imagined.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from threading import Event
from typing import Any

from api.queue import JobQueue
from api.settings import GatewaySettings
from controller.retention import Retention
from controller.settings import ControllerSettings
from controller.sweeper import Sweeper
from controller.webhooks import Webhooks
from gpu_worker.slot.held_job import HeldJob
from serinette.errors import EngineCrashed, EngineOutOfMemory
from serinette.job import JobOptions, JobStatus
from serinette.jobs import AsyncJobs
from serinette.names import Keys, Lane
from serinette.settings import SharedSettings, connect_redis, connect_redis_async
from serinette.spec import AudioFormat, GenerationSpec
from serinette.store import Store
from tests.processes import eventually
from tests.receivers import SECRET, Receiver
from tests.unit.slot_bench import SlotBench

TENANTS = 7
# What twenty jobs do, over and over; the engine reads it in their prompts.
WAYS = (
    *("generated",) * 6,
    *("failed",) * 2,
    *("retried",) * 2,
    *("crashed thrice",),
    *("canceled while it waited",) * 3,
    *("canceled while it ran",) * 2,
    *("expired",) * 4,
)
ENDS = {
    "generated": JobStatus.SUCCEEDED,
    "retried": JobStatus.SUCCEEDED,
    "failed": JobStatus.FAILED,
    "crashed thrice": JobStatus.FAILED,
    "expired": JobStatus.FAILED,
    "canceled while it waited": JobStatus.CANCELED,
    "canceled while it ran": JobStatus.CANCELED,
}


def is_repeated(number: int) -> bool:
    """Whether a job is submitted twice, with its Idempotency-Key."""
    return number % 30 == 0


def error_of(way: str, attempt: int) -> EngineOutOfMemory | EngineCrashed | None:
    """What the engine raises at an attempt, counted from 1."""
    if way == "failed":
        return EngineOutOfMemory("the song does not fit")
    if way == "crashed thrice" or (way == "retried" and attempt == 1):
        return EngineCrashed("the engine is gone")
    return None


class _AtOnce(Event):
    """Lets a sweep of the store go on without its pauses."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


@dataclass(frozen=True, slots=True)
class Held:
    """What is held at one moment."""

    names: frozenset[str]  # keys of Redis, but the worker's own, which comes and goes
    memory_bytes: int  # of Redis, less its clients' buffers
    files: int  # in the store, directories too

    @property
    def kept(self) -> set[str]:
        """Keys, a tenant's usage as one whatever the day; without the one mark that a sweep came late."""
        return {re.sub(r"(:usage:.*):[0-9]+$", r"\1", name) for name in self.names if not name.endswith(":extended")}


@dataclass
class Crowd:
    """Submits, ends and forgets jobs. `retention_s` is far below what settings allow, so that a test sees the end."""

    directory: Path
    redis_url: str
    receiver: Receiver
    retention_s: int
    ended: Counter[str] = field(default_factory=Counter)
    numbers: Any = field(default_factory=count)

    def __post_init__(self) -> None:
        shared = {
            "redis_url": self.redis_url,
            "redis_timeout_s": 60,  # hundreds of transitions come in a round trip, on a machine that others use
            "store_url": f"file://{self.directory / 'store'}",
            "webhook_secret": SECRET,
            "webhook_networks": ["127.0.0.0/8"],
        }
        brief = {"retention_s": self.retention_s}
        gateway = GatewaySettings.model_validate({**shared, "max_waiting": 1_000_000}).model_copy(update=brief)
        self.settings = ControllerSettings.model_validate(shared).model_copy(update=brief)
        self.redis, self.keys = connect_redis(gateway), Keys()
        self.store = Store.open(SharedSettings.model_validate({"store_url": shared["store_url"]}))
        self.loop = asyncio.Runner()
        self.client = connect_redis_async(gateway)
        self.queue = JobQueue(AsyncJobs(self.client, self.keys.prefix), self.store, gateway)
        self.slot = SlotBench(self.redis, self.keys, self.store)
        self.worker = self.slot.slot()
        self.slot.engine.meanwhile = self._meanwhile
        self.webhooks = Webhooks(self.redis, self.settings)
        self.retention = Retention(self.redis, self.keys, self.store, self.retention_s)

    def wave(self, jobs: int) -> None:
        """So many jobs come, and end."""
        self.receiver.answers.append(500)  # one webhook is tried again
        ids = self.submit(list(islice(self.numbers, jobs)))
        self.cancel([(job_id, tenant) for job_id, (way, tenant) in ids.items() if way == "canceled while it waited"])
        sweeper = Sweeper(self.redis, self.store, self.settings)
        late = [job_id for job_id, (way, _) in ids.items() if way == "expired"]

        def expired() -> bool:
            sweeper()
            return not self._live(late)

        assert eventually(expired, 120)
        self.work()
        self.webhooks()
        assert not self._live(list(ids)), "some did not end"
        self.ended.update(ENDS[way].value for way, _ in ids.values())

    def submit(self, numbers: Sequence[int]) -> dict[str, tuple[str, str]]:
        """The way and the tenant of each new job, by its id."""
        return dict(self._submit(number) for number in numbers)

    def cancel(self, jobs: Sequence[tuple[str, str]]) -> None:
        """Jobs that wait, each with its tenant."""
        for job_id, tenant in jobs:
            self.loop.run(self.queue.cancel(tenant, job_id))

    def work(self) -> None:
        """End all that wait."""
        while self.worker.run_one():
            pass

    def reported(self) -> Counter[str]:
        """How many jobs ended in which way, as the tenants' usage has it."""
        total: Counter[str] = Counter()
        for key in self.redis.scan_iter(f"{self.keys.usage('*', 0).removesuffix('0')}*"):
            usage = self.redis.hgetall(key)
            total.update({end.value: int(usage.get(end.value.encode(), 0)) for end in set(ENDS.values())})
        return total

    def wanted(self, number: int) -> tuple[str, GenerationSpec, JobOptions, str | None]:
        """Tenant, work, options and Idempotency-Key of a job; its way is its prompt."""
        way = WAYS[number % len(WAYS)]
        spec = GenerationSpec(prompt=way, lyrics="la " * 100, seed=number, format=AudioFormat.WAV)
        options = JobOptions(
            lane=list(Lane)[number % 3],
            labels={"number": str(number)},
            start_deadline_s=1 if way == "expired" else 3600 if number % 2 else None,
            webhook=f"http://127.0.0.1:{self.receiver.port}/" if number % 11 == 0 else None,
        )
        return f"tenant-{number % TENANTS}", spec, options, f"key {number}" if number % 3 == 0 else None

    def _submit(self, number: int) -> tuple[str, tuple[str, str]]:
        tenant, spec, options, key = self.wanted(number)
        job, created = self.loop.run(self.queue.submit(tenant, spec, options, idempotency_key=key))
        assert created
        if is_repeated(number):
            again, _ = self.loop.run(self.queue.submit(tenant, spec, options, idempotency_key=key))
            assert again.id == job.id
        return job.id, (spec.prompt, tenant)

    def _live(self, job_ids: list[str]) -> list[str]:
        """Those that have not ended."""
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.zscore(self.keys.live, job_id)
            return [job_id for job_id, score in zip(job_ids, pipe.execute(), strict=True) if score is not None]

    def _meanwhile(self, held: HeldJob) -> None:
        """What the engine does to a job whose prompt asks for it."""
        way = held.entry.spec.prompt
        if error := error_of(way, held.attempt.number):
            raise error
        if way == "canceled while it ran":
            self.loop.run(self.queue.cancel(held.entry.tenant, held.job_id))
            held.canceled = True  # as the slot's heartbeat learns it

    def settle(self, timeout_s: float) -> Held:
        """Let everything that may expire do so, with a controller at work; what is held then."""
        records = (f"{self.keys.job('')}*", f"{self.keys.ended_job('')}*", "rq:job:*")

        def forgotten() -> bool:
            # Looked at first: what expires in the midst of a walk is found by the next one.
            known = any(any(self.redis.scan_iter(jobs, count=10_000)) for jobs in records)
            Sweeper(self.redis, self.store, self.settings, whole_s=0)()  # a new one tidies at once
            self.sweep_store()
            self.webhooks()
            # Ends that the store was not told of before their jobs were forgotten are dropped some at a time.
            left = self.redis.exists(self.keys.webhooks, self.keys.unrecorded, self.keys.ended)
            return not known and not left and not self._files()

        assert eventually(forgotten, timeout_s), f"still there: {self.held().names}"
        return self.held()

    def sweep_store(self) -> None:
        """Delete what is old, without the pauses that leave the store to others."""
        self.retention.sweep(_AtOnce())

    def held(self) -> Held:
        """What is held now."""
        self.redis.slowlog_reset()  # a busy machine's slow commands are no job's
        self.redis.execute_command("MEMORY", "PURGE")  # type: ignore[no-untyped-call]
        names = frozenset(key.decode() for key in self.redis.scan_iter(count=10_000))
        return Held(names - {f"rq:worker:{self.worker.name}"}, self.memory_bytes(), len(self._files()))

    def memory_bytes(self) -> int:
        """Of Redis, less its clients' buffers."""
        memory: Any = self.redis.info("memory")
        return int(memory["used_memory"]) - int(memory["mem_clients_normal"])

    def _files(self) -> list[Path]:
        return [path for path in (self.directory / "store").rglob("*") if path.name not in {"songs", "uploads"}]
