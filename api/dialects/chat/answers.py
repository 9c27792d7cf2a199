"""OpenAI's shapes: completions, their chunks, errors and the list of models. Pure functions of the job."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, Field

from api.dialects.chat.table import API, theirs
from api.dialects.dialect import refusals
from api.dialects.fields import warnings_of
from serinette.job import Artifact, Job, JobStatus

# All songs of an answer together; longer ones are named by their URL in place of the data.
MAX_INLINE_BYTES: Final = 64 * 1024 * 1024
# What stands where a song's data goes, until the answer is written.
_HERE: Final = "serinette:song"


class ListedModel(BaseModel):
    """A model in OpenAI's list, as ACE-Step 1.5's running server has it at GET /v1/models."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="Unknown: 0.")
    owned_by: str = "serinette"
    name: str
    input_modalities: tuple[str, ...] = ("text", "audio")
    output_modalities: tuple[str, ...] = ("audio", "text")
    pricing: dict[str, str] = Field(default_factory=lambda: dict.fromkeys(("prompt", "completion", "request"), "0"))
    description: str = "Music generation."


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: tuple[ListedModel, ...]


def listed(names: Sequence[str]) -> dict[str, Any]:
    """All models that can be asked for, the default first."""
    return ModelList(data=tuple(ListedModel(id=name, name=name) for name in names)).model_dump(mode="json")


def error_of(message: str, kind: str, code: str) -> dict[str, Any]:
    """An error, both for OpenAI's clients and for those that read `detail`."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}, "detail": message}


def _refusal(status: int, message: str, code: str) -> dict[str, Any]:
    is_theirs = status < 500 and status != 429
    return error_of(message, "invalid_request_error" if is_theirs else "server_error", code)


refuse = refusals(_refusal, theirs)


def failure(job: Job) -> dict[str, Any]:
    """Why a job that ended has no song."""
    if job.status is JobStatus.CANCELED:
        return error_of("the song was canceled", "server_error", "canceled")
    if job.error is None:
        return error_of("the job failed without saying why", "server_error", "failed")
    return error_of(theirs(job.error.message), "server_error", job.error.code)


def completion(job: Job, base_url: str) -> list[bytes | Artifact]:
    """The whole answer to a call that does not stream, with songs where their data goes."""
    message = {"role": "assistant", "content": content(job), "audio": _audio(job, base_url)}
    answer = {
        **_head(job, "chat.completion"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        # No language model counts tokens here.
        "usage": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), 0),
        "warnings": warnings(job),
    }
    return _with_songs(json.dumps(answer), job)


def chunk(job: Job, delta: dict[str, Any], finish: str | None = None) -> bytes:
    """One event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({**_head(job, 'chat.completion.chunk'), 'choices': [choice]})}\n\n".encode()


def last_chunks(job: Job, base_url: str) -> Iterator[bytes | Artifact]:
    """The events of a stream from the end of its job, with songs where their data goes."""
    if job.status is not JobStatus.SUCCEEDED:
        yield f"data: {json.dumps(failure(job))}\n\n".encode()
    else:
        yield chunk(job, {"content": f"\n\n{content(job)}"})
        yield from _with_songs(chunk(job, {"audio": _audio(job, base_url)}).decode(), job)
        yield chunk(job, {}, "stop")
    yield b"data: [DONE]\n\n"


def warnings(job: Job) -> list[str]:
    """All that was not done as asked."""
    return [*warnings_of(job, API), *(theirs(warning) for warning in (job.result.warnings if job.result else ()))]


def content(job: Job) -> str:
    """What was generated, and what was not done as asked, for people to read."""
    songs = songs_of(job)
    spec = songs[0].generated_from(job.spec) if songs else job.spec
    metadata = {
        "Caption": spec.prompt,
        "BPM": spec.bpm,
        "Duration": f"{songs[0].duration_s:g}s" if songs else None,
        "Key": spec.key_scale,
        "Time Signature": spec.time_signature,
        "Language": spec.vocal_language,
        "Seed": ", ".join(str(song.seed) for song in songs),
    }
    lines = ["## Metadata", *(f"**{name}:** {value}" for name, value in metadata.items() if value)]
    if spec.lyrics.strip():
        lines += ["", "## Lyrics", spec.lyrics]
    if said := warnings(job):
        lines += ["", "## Notes", *(f"- {warning}" for warning in said)]
    return "\n".join(lines)


def songs_of(job: Job) -> tuple[Artifact, ...]:
    """The songs of a job that has some."""
    return job.result.artifacts if job.result else ()


def _head(job: Job, kind: str) -> dict[str, Any]:
    model = job.result.model if job.result else job.spec.model or "default"
    return {"id": f"chatcmpl-{job.id}", "object": kind, "created": int(job.created_at.timestamp()), "model": model}


def _inline(job: Job) -> bool:
    return sum(song.size_bytes for song in songs_of(job)) <= MAX_INLINE_BYTES


def _audio(job: Job, base_url: str) -> list[dict[str, Any]]:
    data = "data:{0.content_type};base64," + _HERE if _inline(job) else f"{base_url}{{0.url}}"
    urls = [data.format(song) for song in songs_of(job)]
    return [{"type": "audio_url", "audio_url": {"url": url}} for url in urls]


def _with_songs(text: str, job: Job) -> list[bytes | Artifact]:
    # What a client wrote stands before the songs, and may hold the same words.
    if not _inline(job):
        return [text.encode()]
    before, *after = text.rsplit(f";base64,{_HERE}", len(songs_of(job)))
    parts: list[bytes | Artifact] = [before.encode()]
    for song, rest in zip(songs_of(job), after, strict=True):
        parts += [b";base64,", song, rest.encode()]
    return parts
