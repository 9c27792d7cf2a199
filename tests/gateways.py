"""A real gateway on a free port, and a slot that needs no engine."""

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

from serinette.job import Artifact, JobError, JobStatus, Progress, Result, Sampling, Stage, Timings, Upload, now
from serinette.jobs import AttemptState, Claimed, Jobs, Lease, Outcome, calls
from serinette.jobs.finishing import put_record, record_of
from serinette.names import Keys, artifact_key, upload_record_key
from serinette.spec import AudioFormat, Planned
from serinette.store import Store
from tests.servers import free_ports

LEASE = Lease("worker-1.0.1", 60)


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
    with httpx.Client(timeout=1) as http:  # one, for each reads all certificates of the system
        while time.monotonic() < deadline:
            assert process.poll() is None, f"the gateway ended with {process.returncode}:\n{log.read_text()[-4000:]}"
            try:
                if http.get(f"{url}/healthz").status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
    raise AssertionError(f"the gateway was not up within {timeout_s} s:\n{log.read_text()[-4000:]}")


class HandSlot:
    """Does to Redis and store what a slot does, without an engine: by the transitions of serinette/jobs."""

    def __init__(self, redis: Redis, store: Store, keys: Keys | None = None) -> None:
        self._store = store
        self.jobs = Jobs(redis, (keys or Keys()).prefix)

    def claim(self, job_id: str, attempt_id: str = "attempt1") -> int:
        """Begin an attempt of a job that waits; its number, 0 if the job does not wait."""
        claimed = self.jobs(calls.take(job_id, attempt_id, LEASE))
        return claimed.number if isinstance(claimed, Claimed) else 0

    def step(self, job_id: str, step: int, attempt_id: str = "attempt1") -> AttemptState:
        """Report step `step` of 8."""
        progress = Progress(stage=Stage.DENOISING, step=step, steps=8, at=now())
        return self.jobs(calls.beat(job_id, attempt_id, LEASE, progress.model_dump_json()))

    def end_attempt(self, job_id: str, error: JobError, attempt_id: str = "attempt1") -> None:
        """Fail one attempt while the job goes on."""
        assert self.jobs(calls.release(job_id, attempt_id, error, charged=True)) is AttemptState.RELEASED

    def succeed(self, job_id: str, songs: list[bytes], tenant: str = "default", attempt_id: str = "attempt1") -> Result:
        """Put songs into the store and end the job; no job.json is put beside them."""
        artifacts = []
        for index, song in enumerate(songs):
            key = artifact_key(tenant, job_id, attempt_id, index, "mp3")
            self._store.put(key, song, "audio/mpeg")
            artifacts.append(_artifact(index, key, song))
        result = _result(tuple(artifacts))
        self._finish(job_id, attempt_id, Outcome(JobStatus.SUCCEEDED, result=result))
        return result

    def write(self, job_id: str, text: Planned, attempt_id: str = "attempt1") -> None:
        """End a job of text."""
        result = _result(()).model_copy(update={"texts": (text,), "sampling": None})
        self._finish(job_id, attempt_id, Outcome(JobStatus.SUCCEEDED, result=result))

    def fail(self, job_id: str, error: JobError, attempt_id: str = "attempt1") -> None:
        """End the job in failure."""
        self._finish(job_id, attempt_id, Outcome(JobStatus.FAILED, error))

    def record(self, job_id: str) -> None:
        """Put an ended job's job.json into the store."""
        (seen,) = self.jobs(calls.look([job_id]))
        assert seen.entry
        attempt = seen.entry.attempts[-1] if seen.entry.attempts else None
        outcome = Outcome(seen.entry.status, seen.entry.error, seen.entry.result)
        put_record(self._store, record_of(seen.entry, attempt, outcome, seen.entry.ended_at))

    def shrink(self, job_id: str) -> None:
        """Put an ended job's job.json into the store, and have Redis forget most of the job."""
        self.record(job_id)
        (seen,) = self.jobs(calls.look([job_id]))
        assert seen.entry
        outcome = Outcome(seen.entry.status, seen.entry.error, seen.entry.result)
        attempt_id = seen.entry.attempts[-1].id if seen.entry.attempts else ""
        self.jobs(calls.finish(job_id, attempt_id, outcome, recorded=True))
        self.jobs.redis.zrem(Keys(self.jobs.prefix).unrecorded, job_id)
        assert self.jobs(calls.shrink(seen.entry))

    def _finish(self, job_id: str, attempt_id: str, outcome: Outcome) -> None:
        assert self.jobs(calls.finish(job_id, attempt_id, outcome, recorded=True)).decided

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
    """The problem that an answer reports; its shape is checked."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    answered: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "code", "retryable", "instance"} <= answered.keys()
    assert answered["status"] == answer.status_code
    return answered
