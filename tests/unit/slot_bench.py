"""A slot inside the test's own process, on a real Valkey and a directory store; only its engine is imagined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from redis import Redis
from rq.job import Job
from rq.queue import Queue

from gpu_worker.settings import WorkerSettings
from gpu_worker.slot.drain import Drain
from gpu_worker.slot.engine_client import EngineClient, Keep
from gpu_worker.slot.hold import Hold
from gpu_worker.slot.song import Singer
from gpu_worker.slot.tell import Tell
from gpu_worker.slot.worker import SlotWorker
from gpu_worker.wire import Audio, Samples, Sing, Sung
from serinette.job import Sampling
from serinette.ledger import Ledger
from serinette.presence import Model
from serinette.spec import GenerationSpec
from tests.pod import enqueue
from tests.unit.maintenance_bench import Bench

RATE = 48_000
RETENTION_S = 3600
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


class ImaginedEngine(EngineClient):
    """Sings silence at once; `meanwhile` happens while it does."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"), stall_timeout_s=1, cancel_timeout_s=1)
        self.meanwhile: Callable[[Hold], None] = lambda _: None
        self.heard: list[Sing] = []
        self.audio: list[Samples] = []
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def ready(self, wait_s: float = 0.0) -> bool:
        return True

    def wait_ready(self, hold: Hold, tell: Tell) -> Model:
        return MODEL

    def sing(self, request: Sing, audio: Sequence[Samples], hold: Hold, tell: Tell, keep: Keep) -> Sung:
        self.heard.append(request)
        self.audio = list(audio)
        self.meanwhile(hold)
        hold.check()
        songs = tuple(
            Audio(role="song", channels=2, frames=480, seed=seed) for seed in range(self._variations(request))
        )
        for index, song in enumerate(songs):
            keep(index, song, np.zeros((song.channels, song.frames), dtype=np.float32))
        sampling = Sampling(steps=8, guidance_scale=1, shift=3, turbo=True)
        return Sung(songs=songs, sample_rate=RATE, sampling=sampling, model=MODEL, generate_s=0.1)

    def _variations(self, request: Sing) -> int:
        return GenerationSpec.from_wire(request.spec).variations


class Slot(SlotWorker):
    """A slot that takes one job at a time, when told to."""

    def take_one(self) -> tuple[Job, Queue]:
        taken = self.dequeue_job_and_maintain_ttl(None)
        assert taken
        return taken

    def sing_one(self) -> None:
        self.execute_job(*self.take_one())


class SlotBench(Bench):
    """Maintenance's bench, with a real slot."""

    engine: ImaginedEngine
    drain: Drain

    def slot(self, client: Redis | None = None, name: str = "slot", retention_s: int = RETENTION_S) -> Slot:
        """A slot of its own name. It beats so seldom that only what it does itself reaches Redis."""
        settings = WorkerSettings(heartbeat_s=30, heartbeat_ttl_s=90, store_patience_s=0)
        settings = settings.model_copy(update={"retention_s": retention_s})  # perhaps briefer than is allowed
        self.engine = ImaginedEngine()
        self.drain = Drain(3600)
        return Slot(
            f"{name}-{next(self.numbers)}", client or self.redis, Singer(self.engine, self.store, settings), self.drain
        )

    def order(self, spec: GenerationSpec | None = None, *, attempts: int = 3) -> str:
        """Submit a job with all that the gateway writes."""
        wire = (spec or GenerationSpec(prompt="jazz", seed=7)).to_wire()
        return enqueue(Ledger(self.redis, self.keys, RETENTION_S), wire, attempts=attempts)
