"""A slot inside the test's own process, on a real Valkey and a directory store; only its engine is imagined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from gpu_worker.settings import WorkerSettings
from gpu_worker.slot.drain import Drain
from gpu_worker.slot.engine_client import EngineClient, Keep
from gpu_worker.slot.generation import SlotResources
from gpu_worker.slot.held_job import HeldJob
from gpu_worker.slot.spool import Spool
from gpu_worker.slot.worker import SlotWorker
from gpu_worker.wire import Audio, Generate, Generated, Samples
from serinette.job import Artifact, Attempt, JobStatus, Record, Result, Sampling, Timings, now
from serinette.jobs import Entry, Outcome, calls
from serinette.jobs.finishing import find_record, put_record, record_of
from serinette.names import Keys, Lane, record_key
from serinette.presence import Model
from serinette.settings import SharedSettings
from serinette.spec import AudioFormat, GenerationSpec
from serinette.store import Store
from tests.jobs import TENANT, Board, assert_ended

RATE = 48_000
MODEL = Model(
    name="imagined",
    revision="r",
    turbo=True,
    sample_rate=RATE,
    channels=2,
    default_steps=8,
    default_guidance_scale=1,
    default_shift=3,
    max_duration_s=600,
    tasks=("text2music",),
)


SETTINGS: dict[str, Any] = {
    "heartbeat_s": 30,
    "heartbeat_ttl_s": 90,
    "store_patience_s": 0,
    "spool_max_bytes": 0,
}


def a_result(job_id: str) -> Result:
    """What a song's attempt leaves."""
    artifact = Artifact(
        index=0,
        key=f"songs/{TENANT}/{job_id}/a-0.mp3",
        seed=7,
        format=AudioFormat.MP3,
        content_type="audio/mpeg",
        size_bytes=3,
        sha256="00",
        duration_s=1,
        sample_rate=RATE,
        channels=2,
    )
    return Result(
        artifacts=(artifact,),
        model="bundled",
        model_revision="r",
        sampling=Sampling(steps=8, guidance_scale=1, shift=3, turbo=True),
        timings=Timings(queue_s=0, generate_s=1, encode_s=0, upload_s=0, run_s=1),
    )


class ImaginedEngine(EngineClient):
    """Generates silence at once; `meanwhile` happens while it does."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"), stall_timeout_s=1, cancel_timeout_s=1)
        self.meanwhile: Callable[[HeldJob], None] = lambda _: None
        self.requests: list[Generate] = []
        self.audio: list[Samples] = []
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def ready(self, wait_s: float = 0.0) -> bool:
        return True

    def wait_ready(self, held: HeldJob) -> Model:
        return MODEL

    def generate(self, request: Generate, audio: Sequence[Samples], held: HeldJob, keep: Keep) -> Generated:
        self.requests.append(request)
        self.audio = list(audio)
        self.meanwhile(held)
        held.check()
        songs = tuple(
            Audio(role="song", channels=2, frames=480, seed=seed) for seed in range(self._variations(request))
        )
        for index, song in enumerate(songs):
            keep(index, song, np.zeros((song.channels, song.frames), dtype=np.float32))
        sampling = Sampling(steps=8, guidance_scale=1, shift=3, turbo=True)
        return Generated(songs=songs, sample_rate=RATE, sampling=sampling, model=MODEL, generate_s=0.1)

    def _variations(self, request: Generate) -> int:
        return GenerationSpec.from_wire(request.spec).variations


class Slot(SlotWorker):
    """A slot that takes one job at a time, when asked to."""

    def run_one(self) -> bool:
        """Whether there was a job to take."""
        if taken := self.take():
            self.execute_job(*taken)
        return taken is not None

    def send_spooled(self) -> None:
        """Bring to the store what waits for it."""
        self.spooled.send(at_once=True)


@dataclass
class SlotBench:
    """Jobs on a real Valkey, a directory store, and slots."""

    redis: Redis
    keys: Keys
    store: Store
    numbers: Iterator[int] = field(default_factory=count)
    engine: ImaginedEngine = field(default_factory=ImaginedEngine)
    drain: Drain = field(default_factory=lambda: Drain(3600))

    @property
    def board(self) -> Board:
        return Board(self.redis, self.keys)

    def slot(self, client: Redis | None = None, name: str = "pod-1.0.slot", **given: Any) -> Slot:
        """A slot of its own name, `given` among its settings. It beats seldom: what reaches Redis it does itself."""
        settings = WorkerSettings(**{**SETTINGS, **given})
        self.engine, self.drain = ImaginedEngine(), Drain(settings.drain_timeout_s)
        resources = SlotResources(self.engine, self.store, settings, Spool.open(settings))
        return Slot(f"{name}{next(self.numbers)}", client or self.redis, resources, self.drain)

    def order(self, spec: GenerationSpec | None = None, *, attempts: int = 3, **given: Any) -> str:
        """Submit a job with all that the gateway writes."""
        return self.board.submit(None, spec or GenerationSpec(prompt="jazz", seed=7), max_attempts=attempts, **given)

    def entry(self, job_id: str) -> Entry:
        return self.board.entry(job_id)

    def record(self, job_id: str) -> Record | None:
        return find_record(self.store, TENANT, job_id)

    def rq_job(self, job_id: str) -> Job:
        return Job.fetch(job_id, self.redis, JSONSerializer)

    def waiting(self, lane: Lane = Lane.NORMAL) -> list[str]:
        return self.board.waiting(lane)

    def lose(self, job_id: str) -> None:
        """What the sweeper does when a job's worker was silent for too long."""
        entry = self.entry(job_id)
        self.board.jobs(calls.release(job_id, entry.owner or "", entry.lost(last=False), charged=True))

    def put_song(self, job_id: str) -> Record:
        """A record in the store, of an attempt that put it and died."""
        entry = self.entry(job_id)
        attempt = Attempt(number=1, id="attempt-a", worker="pod-0.0.dead", started_at=now())
        return put_record(self.store, record_of(entry, attempt, Outcome(JobStatus.SUCCEEDED, result=a_result(job_id))))

    def assert_ended(self, job_id: str, status: JobStatus) -> None:
        assert_ended(self.board, job_id, status)
        record = self.record(job_id)
        assert record is None or record.status is status
        if status is JobStatus.SUCCEEDED:
            assert record is not None and record.result == self.entry(job_id).result

    def held(self) -> list[str]:
        """Attempts that RQ takes for running."""
        found: Any = self.redis.zrange("rq:wip:default.normal", 0, -1)
        return [member.decode() for member in found]


class SpoolBench(SlotBench):
    """A bench whose store can go away: a plain file lies where its directory was."""

    directory: Path

    @classmethod
    def at(cls, redis: Redis, directory: Path) -> SpoolBench:
        (directory / "store").mkdir(exist_ok=True)
        bench = cls(redis, Keys(), Store.open(SharedSettings(store_url=f"file://{directory / 'store'}")))
        bench.directory = directory
        return bench

    @contextmanager
    def away(self) -> Iterator[None]:
        store, aside = self.directory / "store", self.directory / "store-aside"
        store.rename(aside)
        store.touch()
        try:
            yield
        finally:
            store.unlink()
            aside.rename(store)

    def spooling(self, max_bytes: int = 10**9, **given: Any) -> Slot:
        return self.slot(work_dir=self.directory / "work", spool_max_bytes=max_bytes, **given)

    @property
    def parcels(self) -> list[Path]:
        return sorted((self.directory / "work" / "spool").glob("*/*"))

    def job_json(self, job_id: str) -> Record:
        return Record.model_validate_json(self.store.get(record_key(TENANT, job_id)))
