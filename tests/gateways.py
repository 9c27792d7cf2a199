"""A real gateway on a free port, and a slot that needs no engine: it drives jobs through RQ and ledger by hand."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from redis import Redis
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer

from serinette.job import Artifact, AttemptOutcome, JobError, JobStatus, Progress, Result, Sampling, Stage, Timings, now
from serinette.ledger import Ledger, Outcome
from serinette.names import Keys, Lane, artifact_key, queue_name, upload_record_key
from serinette.spec import AudioFormat
from serinette.store import Store
from serinette.upload import Upload
from tests.servers import free_ports


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """`python -m api` in a process of its own."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def gateway(directory: Path, redis_url: str, store_url: str, **settings: object) -> Iterator[RunningGateway]:
    """A gateway that answers, and at the end has met nothing that it did not expect; its log lies in `directory`."""
    port = free_ports(1)[0]
    given = {"redis_url": redis_url, "store_url": store_url, "port": port, **settings}
    own = {f"SERINETTE_{name.upper()}": str(value) for name, value in given.items()}
    environment = {**os.environ, "TMPDIR": str(directory / "tmp"), **own}
    log = directory / f"gateway-{port}.log"
    (directory / "tmp").mkdir(exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "api"], env=environment, stdout=file, stderr=file, cwd=directory
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _until_alive(url, process, log)
        yield RunningGateway(url, port, process, log)
        assert "Traceback" not in log.read_text(), log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait()


def _until_alive(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the gateway ended with {process.returncode}:\n{log.read_text()[-4000:]}"
        try:
            if httpx.get(f"{url}/healthz", timeout=1).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError(f"the gateway was not up within {timeout_s} s:\n{log.read_text()[-4000:]}")


class HandSlot:
    """Does to Redis and store what a slot does, without singing."""

    def __init__(self, redis: Redis, store: Store, keys: Keys | None = None) -> None:
        self._redis = redis
        self._store = store
        self.ledger = Ledger(redis, keys or Keys())

    def claim(self, job_id: str, pool: str = "default", lane: Lane = Lane.NORMAL, attempt_id: str = "attempt1") -> int:
        """Take the job out of its lane and begin an attempt; what the ledger answered."""
        Queue(queue_name(pool, lane), self._redis, serializer=JSONSerializer).remove(job_id)
        number = self.ledger.begin_attempt(job_id, attempt_id, "worker-1")
        if number > 0:
            self._rq_job(job_id).set_status(RqStatus.STARTED)
        return number

    def step(self, job_id: str, step: int, attempt_id: str = "attempt1") -> int:
        """Tell step `step` of 8."""
        progress = Progress(stage=Stage.DENOISING, step=step, steps=8, at=now())
        return self.ledger.progress(job_id, attempt_id, progress)

    def end_attempt(self, job_id: str, error: JobError, attempt_id: str = "attempt1") -> None:
        """Fail one attempt while the job goes on."""
        self.ledger.end_attempt(job_id, attempt_id, AttemptOutcome.FAILED, error)

    def succeed(self, job_id: str, songs: list[bytes], tenant: str = "default", attempt_id: str = "attempt1") -> Result:
        """Put songs into the store and end the job as RQ's worker does."""
        artifacts = []
        for index, song in enumerate(songs):
            key = artifact_key(tenant, job_id, attempt_id, index, "mp3")
            self._store.put(key, song, "audio/mpeg")
            artifacts.append(_artifact(index, key, song))
        result = _result(tuple(artifacts))
        rq_job = self._rq_job(job_id)
        rq_job._result = result.model_dump(mode="json")
        with self._redis.pipeline(transaction=True) as pipe:
            rq_job._handle_success(3600, pipe)
            self.ledger.settle(job_id, Outcome(JobStatus.SUCCEEDED, result=result), pipeline=pipe)
            pipe.execute()
        return result

    def fail(self, job_id: str, error: JobError) -> None:
        """End the job in failure as RQ's worker does."""
        rq_job = self._rq_job(job_id)
        with self._redis.pipeline(transaction=True) as pipe:
            rq_job.set_status(RqStatus.FAILED, pipeline=pipe)
            rq_job.failed_job_registry.add(rq_job, ttl=3600, exc_string=error.message, pipeline=pipe)
            self.ledger.settle(job_id, Outcome(JobStatus.FAILED, error), pipeline=pipe)
            pipe.execute()

    def keep_upload(self, upload_id: str, duration_s: float) -> None:
        """Record an upload as proved; its bytes are not there."""
        upload = Upload(
            id=upload_id,
            duration_s=duration_s,
            sample_rate=48_000,
            channels=2,
            codec="pcm_s16le",
            container="wav",
            size_bytes=1,
            sha256="0" * 64,
            created_at=now(),
        )
        self._store.put(upload_record_key("default", upload_id), upload.model_dump_json().encode())

    def _rq_job(self, job_id: str) -> RqJob:
        return RqJob.fetch(job_id, self._redis, JSONSerializer)


def _artifact(index: int, key: str, song: bytes) -> Artifact:
    return Artifact(
        index=index,
        key=key,
        seed=index,
        format=AudioFormat.MP3,
        content_type="audio/mpeg",
        size_bytes=len(song),
        sha256=hashlib.sha256(song).hexdigest(),
        duration_s=1.0,
        sample_rate=48_000,
        channels=2,
    )


def _result(artifacts: tuple[Artifact, ...]) -> Result:
    return Result(
        artifacts=artifacts,
        model="tiny",
        model_revision="0" * 64,
        sampling=Sampling(steps=8, guidance_scale=1.0, shift=3.0, turbo=True),
        timings=Timings(queue_s=0.1, generate_s=1.0, encode_s=0.1, upload_s=0.1, run_s=1.3),
    )


def problem(answer: httpx.Response) -> dict[str, Any]:
    """The problem that an answer tells; its shape is checked."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    told: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "code", "retryable", "instance"} <= told.keys()
    assert told["status"] == answer.status_code
    return told
