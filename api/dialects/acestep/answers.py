"""ACE-Step 1.5's answers: the envelope around all, refusals, and a task's numbers, shapes and JSON in JSON."""

from __future__ import annotations

import json
import time
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, Field

from api.dialects.acestep.names import song_url
from api.dialects.acestep.request import ReleaseTask
from api.dialects.acestep.samples import Sample
from api.dialects.acestep.table import API, theirs, warnings
from api.dialects.dialect import refusals
from api.dialects.fields import Conversion, warnings_of
from serinette.job import Job, JobStatus, Stage
from serinette.spec import INSTRUMENTAL, UNKNOWN_LANGUAGE, GenerationSpec, Planned, Task

Data = TypeVar("Data")

# 0 waits or runs, 1 succeeded, 2 failed.
_NUMBERS: Final = {JobStatus.QUEUED: 0, JobStatus.RUNNING: 0, JobStatus.SUCCEEDED: 1}
ENVIRONMENT: Final = "production"
CANCELED: Final = "the task was canceled"
UNKNOWN: Final = "there is no such task: it was never released here, or was erased when its time was over"


def _timestamp_ms() -> int:
    return time.time_ns() // 1_000_000


class Envelope(BaseModel, Generic[Data]):
    """`code` is 200 when all is well; otherwise `error` says what is not, also where the HTTP status is 200."""

    data: Data | None = None
    code: int = 200
    error: str | None = None
    timestamp: int = Field(default_factory=_timestamp_ms, description="When it was answered, in Unix milliseconds.")
    extra: None = None


def wrapped(data: object = None, *, code: int = 200, error: str | None = None) -> dict[str, Any]:
    """An envelope as JSON takes it."""
    return Envelope[Any](data=data, code=code, error=error).model_dump(mode="json")


def _refusal(status: int, message: str, _: str) -> dict[str, Any]:
    """A refusal, both for clients that read `detail` and for those that read `error`."""
    return wrapped(code=status, error=message) | {"detail": message}


refuse = refusals(_refusal, theirs)


def released(job: Job) -> dict[str, Any]:
    """To POST /release_task."""
    return {
        "task_id": job.id,
        "status": "queued",
        "queue_position": job.position or 0,
        "warnings": warnings_of(job, API),
    }


def written(conversion: Conversion[ReleaseTask], job: Job | None) -> dict[str, Any]:
    """To calls that have a planner write: what it wrote, or where it did not what was sent, and why."""
    spec, result = conversion.spec(), job.result if job else None
    text = result.texts[0] if result and result.texts else None
    said = warnings(conversion) + [theirs(warning) for warning in (result.warnings if result else ())]
    if text is None:
        text = Planned.model_validate(spec.model_dump(include=set(Planned.model_fields)) | {"caption": spec.prompt})
        said.insert(0, _unwritten(job))
    sample = Sample(
        caption=text.caption or "",
        lyrics=text.lyrics or INSTRUMENTAL,
        bpm=text.bpm,
        key_scale=text.key_scale or "",
        duration_s=text.duration_s or spec.duration_s,
        language=text.vocal_language or UNKNOWN_LANGUAGE,
        time_signature=text.time_signature or "",
    )
    degraded = result is None or not result.texts
    instrumental = sample.lyrics == INSTRUMENTAL
    return sample.documented() | {"instrumental": instrumental, "degraded": degraded, "warnings": said}


def _unwritten(job: Job | None) -> str:
    if job is None:
        return "nothing was written: no worker with a planner is up"
    why = _failure(job) if job.status is JobStatus.FAILED else "the planner was not done in time"
    return f"nothing was written: {why}"


def answer(task_id: str, job: Job | None) -> dict[str, Any]:
    """One task's entry in the answer to POST /query_result."""
    if job is None:
        return _entry(task_id, 2, [_record(2, stage="failed", error=UNKNOWN)], UNKNOWN, UNKNOWN)
    number = _NUMBERS.get(job.status, 2)
    error = _failure(job)
    return _entry(task_id, number, _songs(job) or [_unfinished(job, number)], _progress_text(job), error)


def _entry(task_id: str, number: int, records: list[dict[str, Any]], text: str, error: str | None) -> dict[str, Any]:
    result = json.dumps(records, ensure_ascii=False)
    entry = {"task_id": task_id, "result": result, "status": number, "progress_text": text}
    return entry if error is None else entry | {"error": error}


def _record(number: int, **known: object) -> dict[str, Any]:
    fixed: dict[str, Any] = {"file": "", "wave": "", "status": number, "create_time": 0, "env": ENVIRONMENT}
    return fixed | {"prompt": "", "lyrics": "", "metas": {}, "progress": 0.0, "stage": "queued", "error": None} | known


def _unfinished(job: Job, number: int) -> dict[str, Any]:
    running = job.progress if job.status is JobStatus.RUNNING else None
    return _record(
        number,
        create_time=int(job.created_at.timestamp()),
        prompt=job.spec.prompt,
        lyrics=job.spec.lyrics,
        progress=running.fraction if running else 0.0,
        stage="failed" if number == 2 else running.stage.value if running else job.status.value,
        error=_failure(job),
        warnings=warnings_of(job, API),
    )


def _songs(job: Job) -> list[dict[str, Any]]:
    if job.result is None:
        return []
    songs, texts, warnings = job.result.artifacts, job.result.texts, _all_warnings(job)
    common: dict[str, object] = {
        "create_time": int(job.created_at.timestamp()),
        "prompt": job.spec.prompt,
        "lyrics": job.spec.lyrics,
        "generation_info": _generation_info(job, warnings),
        "seed_value": ",".join(str(song.seed) for song in songs),
        "lm_model": "",
        "dit_model": job.result.model,
        "progress": 1.0,
        "stage": "succeeded",
        "warnings": warnings,
    }
    return [
        *(
            _record(
                1,
                file=song_url(job.id, song),
                metas=_metas(song.generated_from(job.spec), song.duration_s),
                **common,
            )
            for song in songs
        ),
        *(_record(1, **{**common, **_text(job.spec, text)}) for text in texts),
    ]


def _metas(spec: GenerationSpec, duration_s: float) -> dict[str, Any]:
    return {
        "bpm": spec.bpm,
        "duration": round(duration_s, 2),
        "genres": "",
        "keyscale": spec.key_scale or "",
        "timesignature": spec.time_signature or "",
        "prompt": spec.prompt,
        "lyrics": spec.lyrics,
    }


def _text(spec: GenerationSpec, text: Planned) -> dict[str, Any]:
    """What a planner wrote, as a song's metas, and beside them where ACE-Step 1.5 has it: by `status_message` its
    clients know an analysis.
    """
    metas = _metas(text.applied_to(spec, None), text.duration_s or 0)
    message = {"status_message": "Full Hardware Analysis Success"} if spec.task is Task.DESCRIBE else {}
    return {
        **metas,
        "genre": metas["genres"],
        "language": text.vocal_language or UNKNOWN_LANGUAGE,
        "metas": metas,
        **message,
    }


def _generation_info(job: Job, warnings: list[str]) -> str:
    if job.result is None or (used := job.result.sampling) is None:
        return ""
    took = job.result.timings
    lines = [
        f"{job.result.model}: {used.steps} steps, shift {used.shift:g}, guidance {used.guidance_scale:g}",
        f"{took.generate_s:.1f} s generated, {took.encode_s:.1f} s encoded, {took.queue_s:.1f} s waited",
        *warnings,
    ]
    return "\n".join(lines)


def _progress_text(job: Job) -> str:
    """The state of the task, in a sentence."""
    if job.waiting_for:
        return f"Waiting for {job.waiting_for}"
    if job.status is not JobStatus.RUNNING:
        return _failure(job) or job.status.value.capitalize()
    if job.progress is None:
        return "Running"
    stage = job.progress.stage.value.replace("_", " ").capitalize()
    counted = job.progress.stage is Stage.DENOISING and job.progress.step is not None
    return f"{stage}, step {job.progress.step} of {job.progress.steps}" if counted else stage


def _failure(job: Job) -> str | None:
    if job.status is JobStatus.CANCELED:
        return CANCELED
    if job.status is not JobStatus.FAILED:
        return None
    return theirs(job.error.message) if job.error else "the task failed without saying why"


def _all_warnings(job: Job) -> list[str]:
    of_the_worker = job.result.warnings if job.result else ()
    return [*warnings_of(job, API), *(theirs(warning) for warning in of_the_worker)]
