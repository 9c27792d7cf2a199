"""Jobs, workers and audio for the tests of dialects' answers."""

from __future__ import annotations

import io
import wave
from datetime import UTC, datetime, timedelta
from typing import Any

from api.queue import Pool
from serinette.job import Artifact, Job, JobStatus, Result, Sampling, Timings
from serinette.names import Lane
from serinette.presence import Presence, WorkerStage
from serinette.spec import AudioFormat
from tests.unit.queue_harness import model as turbo_model

AT = datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)
ID = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
TIMINGS = Timings(queue_s=1, generate_s=2, encode_s=0.1, upload_s=0.1, run_s=2.5)


def artifact(index: int, seed: int, duration_s: float) -> Artifact:
    """One mp3 of a job."""
    return Artifact(
        index=index,
        key=f"songs/default/{ID}/a-{index}.mp3",
        seed=seed,
        format=AudioFormat.MP3,
        content_type="audio/mpeg",
        size_bytes=360_000,
        sha256="0" * 64,
        duration_s=duration_s,
        sample_rate=48_000,
        channels=2,
    )


def result(*songs: Artifact, model: str, warning: str) -> Result:
    """What a worker reports of a job that it finished in 8 steps without guidance."""
    return Result(
        artifacts=songs,
        model=model,
        model_revision="r1",
        sampling=Sampling(steps=8, guidance_scale=1.0, shift=3.0, turbo=True),
        timings=TIMINGS,
        warnings=(warning,),
    )


def job(status: JobStatus, done: Result, **changes: Any) -> Job:
    """A job in this state; `done` is its result if it succeeded."""
    facts: dict[str, Any] = {
        "id": ID,
        "tenant": "default",
        "status": status,
        "pool": "default",
        "lane": Lane.NORMAL,
        "created_at": AT,
        "started_at": None if status is JobStatus.QUEUED else AT + timedelta(seconds=1),
        "ended_at": AT + timedelta(seconds=4) if status.ended else None,
        "result": done if status is JobStatus.SUCCEEDED else None,
    }
    return Job(**(facts | changes))


def worker(
    name: str, model: str | None, pool: str = "default", stage: WorkerStage = WorkerStage.READY, **changes: Any
) -> Presence:
    """A worker that holds a turbo model, or none yet."""
    held = turbo_model(model).model_copy(update={"tasks": ("text2music", "cover")}) if model else None
    facts: dict[str, Any] = {"slots": 1, "model": held, "started_at": AT}
    return Presence(name=name, pool=pool, stage=stage, **(facts | changes))


def pool(name: str, *workers: Presence, **counts: Any) -> Pool:
    """A pool with these workers."""
    return Pool(name=name, waiting={Lane.NORMAL: counts.pop("waiting", 0)}, workers=workers, **counts)


def silence(seconds: int = 1) -> bytes:
    """As wav."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(48_000)
        writer.writeframes(bytes(48_000 * 4 * seconds))
    return file.getvalue()
