"""A real worker pod behind a Valkey and a directory store of its own; jobs go in by transitions, without a gateway."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from redis import Redis, RedisError
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from gpu_worker.settings import WorkerSettings
from serinette.job import JobStatus, Record, Upload, now
from serinette.jobs import Entry
from serinette.leash import leashed
from serinette.names import Lane, queue_name, record_key, upload_audio_key, upload_record_key
from serinette.presence import Presence, WorkerStage, present
from serinette.spec import AudioFormat, GenerationSpec
from serinette.store import Store
from tests.jobs import TENANT, Board
from tests.processes import eventually


def put_upload(store: Store, upload_id: str, data: bytes) -> None:
    """An upload as the gateway leaves it; what it says of the sound is not read again."""
    record = Upload(
        id=upload_id,
        duration_s=1,
        sample_rate=48_000,
        channels=2,
        codec="pcm",
        container="wav",
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        created_at=now(),
    )
    store.put(upload_audio_key(TENANT, upload_id), data)
    store.put(upload_record_key(TENANT, upload_id), record.model_dump_json().encode())


@dataclass
class Pod:
    """Everything a test of the worker touches."""

    directory: Path
    redis_url: str
    settings: WorkerSettings
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.redis = Redis.from_url(self.redis_url, socket_timeout=5)
        self.store = Store.open(self.settings)
        self.board = Board(self.redis, self.settings.keys)

    # -- the worker

    def start(self, **settings: object) -> subprocess.Popen[bytes]:
        """Start a worker, with settings of its own."""
        own = {f"SERINETTE_{name.upper()}": str(value) for name, value in settings.items()}
        with (self.directory / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                leashed([sys.executable, "-m", "gpu_worker"]),
                env={**self.environment, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def log(self) -> str:
        return (self.directory / "worker.log").read_text(errors="replace")

    def presence(self) -> Presence | None:
        with suppress(RedisError):
            return next(iter(present(self.redis, self.settings.keys)), None)
        return None

    def wait_stage(self, stage: WorkerStage = WorkerStage.READY, timeout_s: float = 60) -> Presence:
        def there() -> bool:
            seen = self.presence()
            return seen is not None and seen.stage is stage

        assert eventually(there, timeout_s), f"never {stage}:\n{self.log()}"
        seen = self.presence()
        assert seen
        return seen

    def child(self, process: subprocess.Popen[bytes], word: str) -> psutil.Process:
        """The child whose command line holds `word`."""

        seen: list[psutil.Process] = []

        def found() -> bool:
            with suppress(psutil.Error):  # one of them ended meanwhile
                seen[:] = [it for it in psutil.Process(process.pid).children() if word in " ".join(it.cmdline())]
            return bool(seen)

        assert eventually(found), f"no {word} below the worker:\n{self.log()}"
        return seen[0]

    # -- jobs

    def submit(self, prompt: str = "", **song: Any) -> str:
        """Submit a song; `job_id`, `lane`, `attempts` and `timeout_s` are of the job."""
        names = {"job_id": "job_id", "lane": "lane", "attempts": "max_attempts", "timeout_s": "timeout_s"}
        options = {field: song.pop(name) for name, field in names.items() if name in song}
        spec = GenerationSpec(prompt=prompt, **{"seed": 7, "duration_s": 1, "format": AudioFormat.WAV, **song})
        return self.board.submit(options.pop("job_id", None), spec, **options)

    def lane(self, lane: Lane = Lane.NORMAL) -> Queue:
        return Queue(queue_name(self.settings.pool, lane), connection=self.redis, serializer=JSONSerializer)

    def entry(self, job_id: str) -> Entry:
        return self.board.entry(job_id)

    def rq_job(self, job_id: str) -> RqJob:
        return RqJob.fetch(job_id, self.redis, JSONSerializer)

    def record(self, job_id: str) -> Record:
        return Record.model_validate_json(self.store.get(record_key(TENANT, job_id)))

    def cancel(self, job_id: str) -> None:
        """As the gateway does."""
        self.board.cancel(job_id)

    def wait_step(self, job_id: str, timeout_s: float = 60) -> None:
        """Wait until a job has reached a step."""

        def stepping() -> bool:
            progress = self.entry(job_id).progress
            return progress is not None and progress.step is not None

        assert eventually(stepping, timeout_s), f"no step: {self.entry(job_id).fields}\n{self.log()}"

    def wait_over(self, job_id: str, outcome: JobStatus | None = None, timeout_s: float = 60) -> Entry:
        """Wait until a job has ended, and in `outcome` if given."""

        def over() -> bool:
            with suppress(RedisError):
                return self.entry(job_id).status.ended
            return False

        assert eventually(over, timeout_s), f"never over: {self.entry(job_id).fields}\n{self.log()}"
        entry = self.entry(job_id)
        assert outcome in {None, entry.status}, f"{entry.fields}\n{self.log()}"
        return entry

    def held(self, lane: Lane = Lane.NORMAL) -> list[str]:
        """Jobs that RQ takes for running, without reaping them."""
        return list(self.lane(lane).started_job_registry.get_job_ids(cleanup=False))

    def leases(self) -> dict[str, float]:
        """Attempts (`job:attempt`) that are held, and the Unix second until which."""
        return self.board.leases()

    def events(self, job_id: str) -> list[str]:
        """Types of a job's events."""
        return self.board.events(job_id)


@contextmanager
def pod(directory: Path, redis_url: str, settings: Mapping[str, Any] | None = None) -> Iterator[Pod]:
    """A pod that is not started yet; its workers are ended on the way out."""
    shared: dict[str, Any] = {
        "redis_url": redis_url,
        "store_url": f"file://{directory / 'store'}",
        "work_dir": directory / "work",
        "engine_module": "tests.engines",
        "slots": 1,
        "heartbeat_s": 0.5,
        "heartbeat_ttl_s": 2,
        "interval_s": 0.5,
        "cancel_timeout_s": 2,
        **(settings or {}),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SERINETTE_")}
    environment = {
        **inherited,
        "OMP_NUM_THREADS": "1",
        **{f"SERINETTE_{name.upper()}": str(value) for name, value in shared.items()},
    }
    made = Pod(directory, redis_url, WorkerSettings(**shared), environment)
    try:
        yield made
    finally:
        for process in made.processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
        made.redis.close()
