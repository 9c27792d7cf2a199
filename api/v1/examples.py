"""Examples and headers of the OpenAPI document, made from the models so that they hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi.openapi.models import Example

from api.v1.answers import JOB_ID
from serinette.job import Job, JobStatus, Progress, Stage, Upload
from serinette.names import DEFAULT_POOL, DEFAULT_TENANT, Lane
from serinette.spec import GenerationSpec

_UPLOAD_ID = "upload-5c0c1c3f4d5b4a0e8f3f6c7d8e9f0a1b"
_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

REQUESTS: list[Any] = [{"prompt": "jazz piano, smooth", "duration_s": 15, "format": "mp3"}]

SUBMIT: dict[str, Example] = {
    "song": {"summary": "A song", "value": REQUESTS[0]},
    "lyrics": {
        "summary": "Words, seed and lane",
        "value": {
            "prompt": "city pop, female voice, bright synths",
            "lyrics": "[verse]\nNeon on the river\n[chorus]\nStay until the morning",
            "duration_s": 120,
            "bpm": 112,
            "key_scale": "F# minor",
            "seed": 7,
            "format": "flac",
            "lane": "high",
            "labels": {"album": "blue"},
        },
    },
    "repaint": {
        "summary": "Generate a part of an upload again",
        "value": {
            "task": "repaint",
            "prompt": "a saxophone solo",
            "source_audio": _UPLOAD_ID,
            "repaint_start_s": 10,
            "repaint_end_s": 20,
        },
    },
}

_job = Job(
    id=JOB_ID,
    tenant=DEFAULT_TENANT,
    status=JobStatus.RUNNING,
    spec=GenerationSpec.model_validate({**REQUESTS[0], "seed": 1_234}),
    pool=DEFAULT_POOL,
    lane=Lane.NORMAL,
    created_at=_AT,
    started_at=_AT + timedelta(seconds=1),
    timeout_s=1800,
    progress=Progress(stage=Stage.DENOISING, step=4, steps=8, at=_AT + timedelta(seconds=3)),
    eta_s=2.4,
)


def _json(value: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"example": value}}


JOB = _json(_job.model_dump(mode="json"))

UPLOAD = _json(
    Upload(
        id=_UPLOAD_ID,
        duration_s=42.5,
        sample_rate=44_100,
        channels=2,
        codec="mp3",
        container="mp3",
        size_bytes=680_312,
        sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        created_at=_AT,
    ).model_dump(mode="json")
)

BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {"schema": {"type": "object", "required": ["file"], "properties": {"file": BINARY["schema"]}}}
UPLOAD_BODY = {"content": {"application/octet-stream": BINARY, "audio/*": BINARY, "multipart/form-data": _FORM}}

AUDIO = dict.fromkeys(("audio/mpeg", "audio/wav", "audio/flac", "audio/ogg", "audio/mp4"), BINARY)


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


AUDIO_HEADERS = {
    "ETag": _header("SHA-256 of the file, quoted."),
    "Accept-Ranges": _header("`bytes`"),
    "Content-Disposition": _header("A name for the file."),
}
SUBMIT_HEADERS = {
    "Location": _header("Where to look at the job."),
    "Idempotency-Replayed": _header("`true` when the key named a job that exists."),
    "Preference-Applied": _header("The wait that was granted."),
}

_PROGRESS = '{"id":"1767323048000-0","type":"progress","data":{"stage":"denoising","step":4,"steps":8,"fraction":0.45}}'
EVENTS = {
    "text/event-stream": {
        "schema": {
            "type": "object",
            "required": ["id", "event", "data"],
            "properties": {
                "id": {"type": "string"},
                "event": {"type": "string"},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": "#/components/schemas/JobEvent"},
                },
                "retry": {"type": "integer"},
            },
        },
        "example": f"id: 1767323048000-0\nevent: progress\ndata: {_PROGRESS}\nretry: 2000\n\n",
    }
}


_BATCHES: dict[str, Example] = {
    "specs": {
        "summary": "Specs",
        "value": {
            "name": "thirty moods",
            "specs": [
                {"prompt": "jazz piano, smooth", "duration_s": 15, "custom_id": "first"},
                {"prompt": "city pop, bright synths", "duration_s": 15},
            ],
            "labels": {"album": "blue"},
        },
    },
    "sweep": {
        "summary": "300 songs of one spec",
        "value": {
            "specs": [{"prompt": "jazz piano, smooth", "duration_s": 15}],
            "sweep": {"guidance_scale": [3, 5, 7], "seed": {"first": 0, "count": 100}},
        },
    },
}
_BATCH_LINES = '{"prompt": "jazz piano, smooth", "duration_s": 15}\n{"prompt": "city pop", "custom_id": "second"}\n'
BATCH_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/BatchRequest"},
            "examples": _BATCHES,
        },
        "application/jsonl": {
            "schema": {"type": "string", "description": "A BatchSpec as JSON on each line."},
            "example": _BATCH_LINES,
        },
    },
}
BATCH_HEADERS = {
    "Location": _header("Path of the batch."),
    "Idempotency-Replayed": _header("`true` when the key named a batch that exists."),
}

CONTAINERS: list[Any] = [
    {
        "image": "registry.example/audio/stems:1",
        "command": ["separate", "/inputs/song.mp3", "--to", "/outputs"],
        "inputs": [{"path": "song.mp3", "artifact": f"{JOB_ID}/0"}],
        "gpus": 1,
        "timeout_s": 1800,
        "retries": 1,
    }
]
