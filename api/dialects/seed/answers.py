"""The seed's answers and refusals: its words, its shapes, its Unix times. Pure functions of the job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse, Response

from api.dialects.seed.request import TAG_DEFAULT
from api.dialects.seed.table import theirs
from api.queue import Pool
from serinette.errors import InvalidAudio, InvalidSpec, NotFound, SerinetteError
from serinette.job import Artifact, Job, JobStatus
from serinette.presence import Presence, WorkerStage
from serinette.spec import Task

_WORDS = {
    JobStatus.QUEUED: "pending",
    JobStatus.RUNNING: "processing",
    JobStatus.SUCCEEDED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELED: "failed",
}
CANCELED = "Cancelled by user"


def refuse(error: Exception) -> Response | None:
    """As FastAPI did for the seed: wrong fields by `loc`, and an unknown id always by one sentence."""
    match error:
        case RequestValidationError():
            wrong = [{name: each[name] for name in ("loc", "msg", "type")} for each in error.errors()]
            return JSONResponse({"detail": wrong}, 422)
        case InvalidSpec() | InvalidAudio():
            message = error.message.removeprefix(f"{error.field}: ")
            field, _, message = theirs(f"{error.field}: {message}").partition(": ")
            return JSONResponse({"detail": [{"loc": ["body", field], "msg": message, "type": error.code}]}, 422)
        case NotFound():
            return JSONResponse({"detail": "Request not found"}, 404)
    return None


def status_word(job: Job) -> str:
    """pending, processing, completed or failed."""
    return _WORDS[job.status]


def failure(job: Job) -> str:
    """Why a job failed, in one sentence."""
    if job.status is JobStatus.CANCELED:
        return CANCELED
    return job.error.message if job.error else "the job failed without saying why"


def audio_path(job: Job) -> str:
    """Where the song is served: a path of this API, never of a file."""
    return f"/result/{job.id}"


def file_name(job: Job) -> str:
    """Name under which a client saves the song."""
    ended_at = job.ended_at or job.created_at
    return f"generated_music_{int(ended_at.timestamp())}.{job.spec.format}"


def artifact(job: Job) -> Artifact:
    """The song of a completed job: this dialect has one for each request."""
    if job.result is None or not job.result.artifacts:
        raise ValueError(f"job {job.id} is {job.status} and has no song")
    return job.result.artifacts[0]


def wants_bytes(job: Job) -> bool:
    """Whether the request asked for audio where the answer would have been JSON."""
    return job.dialect.get("return_file_data") == "true"


QUEUED: Final = {"status": "queued", "message": "Request has been queued for processing"}


def queued_with_audio(job: Job, file_name: str | None, *, base64: bool = False) -> dict[str, Any]:
    """To a request that came with a file, or with its bytes in base64."""
    named = f" Original filename: {file_name}" if file_name else ""
    message = f"Audio file uploaded and queued for processing.{named}"
    if base64:
        message = "Base64 audio data uploaded and queued for processing"
    return {"success": True, "request_id": job.id, "message": message}


def status(job: Job) -> dict[str, Any]:
    """GET /status/{id}."""
    answer: dict[str, Any] = {
        "request_id": job.id,
        "status": status_word(job),
        "created_at": job.created_at.timestamp(),
        "started_at": _unix(job.started_at),
        "completed_at": _unix(job.ended_at),
    }
    if job.status is JobStatus.SUCCEEDED:
        answer["result"] = _file_facts(job) if wants_bytes(job) else song(job)
    elif job.status.ended:
        answer["error"] = failure(job)
    return answer


def song(job: Job) -> dict[str, Any]:
    """A completed job where a client asked for JSON."""
    return {"success": True, "audio_path": audio_path(job), "params_json": params(job)}


def song_with_facts(job: Job) -> dict[str, Any]:
    """The same with the request's id and what is known of the file."""
    return {"request_id": job.id} | song(job) | _file_facts(job) | {"sample_rate": artifact(job).sample_rate}


def params(job: Job) -> dict[str, Any]:
    """All that was used, in the seed's names where it has one, and what was sent, adjusted and ignored."""
    used: dict[str, Any] = {
        "task": job.spec.task.value,
        "format": job.spec.format.value,
        "prompt": job.spec.prompt,
        "lyrics": job.spec.lyrics,
        "audio_duration": job.spec.duration_s,
        "cfg_start": job.spec.cfg_start,
        "cfg_end": job.spec.cfg_end,
        "actual_seeds": list(job.spec.seeds),
    }
    if job.spec.task is Task.COVER:
        used |= {"source_audio": job.spec.source_audio, "ref_audio_strength": job.spec.cover_strength}
    if job.result and (sampling := job.result.sampling):
        first = artifact(job)
        used |= {
            "audio_duration": first.duration_s,
            "actual_seeds": [each.seed for each in job.result.artifacts],
            "infer_step": sampling.steps,
            "guidance_scale": sampling.guidance_scale,
            "shift": sampling.shift,
            "sample_rate": first.sample_rate,
            "model": job.result.model,
            "model_revision": job.result.model_revision,
            "timings": job.result.timings.model_dump(),
            "warnings": list(job.result.warnings),
        }
    record = {name: json.loads(job.dialect.get(name, empty)) for name, empty in _RECORD}
    record["adjusted"] += _adjusted_by_the_worker(record["sent"], used) if job.result else []
    return used | record


# What table.py recorded of the request, and what stands for it in jobs that came by another dialect.
_RECORD = (("sent", "{}"), ("adjusted", "[]"), ("ignored", "[]"))


def _adjusted_by_the_worker(sent: dict[str, Any], used: dict[str, Any]) -> list[dict[str, Any]]:
    """What the job asked for as sent, and the checkpoint could not do."""
    return [
        {"field": name, "sent": sent[name], "used": used[name], "reason": "what the checkpoint takes"}
        for name in ("infer_step", "guidance_scale")
        if sent.get(name) is not None and sent[name] != used[name]
    ]


def not_completed(job: Job) -> dict[str, Any]:
    """GET /result/{id} before the song, or without one (400)."""
    answer = {"detail": f"Request is {status_word(job)}, not completed"}
    return answer | ({"error": failure(job)} if job.status.ended else {})


def unsuccessful(message: str) -> dict[str, Any]:
    """Where the seed answers a failure with 200."""
    return {"success": False, "error_message": message}


def failed(job: Job) -> dict[str, Any]:
    """A job that has no song, to a call that waited for JSON."""
    return {"request_id": job.id} | unsuccessful(failure(job))


def queue(pools: Sequence[Pool]) -> dict[str, Any]:
    """GET /queue/status."""
    counts = {
        "pending": sum(sum(pool.waiting.values()) for pool in pools),
        "processing": sum(pool.running for pool in pools),
        "completed": sum(pool.succeeded for pool in pools),
        "failed": sum(pool.unsuccessful for pool in pools),
    }
    return {"queue_size": counts["pending"], "status_counts": counts, "total_requests": sum(counts.values())}


def health(pools: Sequence[Pool], _: str = "") -> dict[str, Any]:
    """GET /health: a worker that still loads its model is listed, with its stage."""
    workers = _workers(pools)
    return {
        "status": "healthy",
        "pipeline_loaded": any(map(_loaded, workers)),
        "workers": [
            {
                "name": worker.name,
                "pool": worker.pool,
                "stage": worker.stage.value,
                "model": worker.model.name if worker.model else None,
                "device": worker.device,
                "slots": worker.slots,
                "busy_slots": worker.busy_slots,
                "message": worker.message,
            }
            for worker in workers
        ],
    }


def unhealthy(error: SerinetteError) -> dict[str, Any]:
    """GET /health while the queue does not answer."""
    return {"status": "unhealthy", "pipeline_loaded": False, "detail": error.message}


def initialized(pools: Sequence[Pool]) -> dict[str, Any]:
    """POST /initialize: models are loaded by workers, so the answer is whether one has its model."""
    workers = _workers(pools)
    names = sorted({worker.model.name for worker in workers if worker.model and _loaded(worker)})
    if names:
        return {"success": True, "message": f"Pipeline initialized successfully: workers hold {', '.join(names)}"}
    if workers:
        stages = ", ".join(f"{worker.name} is {worker.stage.value}" for worker in workers)
        return unsuccessful(f"No worker has its model yet ({stages}); requests wait in the queue until one has")
    return unsuccessful(
        "No worker is there. Workers load models, not this call; requests wait in the queue until one has"
    )


def sample() -> dict[str, Any]:
    """GET /sample_data: a body that can be sent as it is."""
    lyrics = "[verse]\nRain on the roof and a lamp in the hall\nA waltz from the kitchen, a shade on the wall\n"
    body = {"format": "mp3", "audio_duration": 30.0, "prompt": TAG_DEFAULT, "lyrics": lyrics, "manual_seeds": "42"}
    return {"success": True, "sample": body}


def _file_facts(job: Job) -> dict[str, Any]:
    first = artifact(job)
    return {
        "success": True,
        "content_type": first.content_type,
        "format": first.format.value,
        "audio_size_bytes": first.size_bytes,
        "params_json": params(job),
        "message": f"Audio data ready for download. Use {audio_path(job)} to download.",
    }


def _workers(pools: Sequence[Pool]) -> list[Presence]:
    return [worker for pool in pools for worker in pool.workers]


def _loaded(worker: Presence) -> bool:
    return worker.model is not None and worker.stage in {WorkerStage.READY, WorkerStage.DRAINING}


def _unix(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
