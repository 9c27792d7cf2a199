"""What each method asks of the gateway, and how the answer is read. Pure: the two clients only send it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from serinette.client.answers import Model, Page, QueueState, TenantUsage, Workers
from serinette.job import Job, JobOptions, JobStatus, Upload
from serinette.names import Lane
from serinette.spec import AudioFormat, GenerationSpec, Task, invalid_spec

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

# The gateway may be set to hold less; then it is asked again.
HOLD_S = 25
_OPTIONS = JobOptions.model_fields.keys()


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and what its answer becomes. `read` raises ValueError for what is none of ours."""

    method: str
    path: str
    read: Callable[[bytes], T]
    query: Mapping[str, str | int] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    on_headers: Callable[[Mapping[str, str]], None] = lambda _: None  # is given the answer's headers, before `read`
    repeatable: bool = True  # doing it twice is the same as once
    hold_s: float = 0.0  # so long the gateway may be silent on purpose


class JobFields(TypedDict, total=False):
    """Fields of a song and its job; see GenerationSpec and JobOptions for meaning and bounds."""

    lyrics: str
    vocal_language: str
    duration_s: float
    bpm: int | None
    key_scale: str | None
    time_signature: str | None
    task: Task | Literal["text2music", "repaint", "cover", "extract", "lego", "complete", "write", "format", "describe"]
    source_audio: str | None
    reference_audio: str | None
    repaint_start_s: float | None
    repaint_end_s: float | None
    track: str | None
    tracks: Sequence[str] | None
    cover_strength: float
    audio_codes: str | None
    thinking: bool
    rewrite: Literal["write", "format"] | None
    lm_seed: int | None
    lm_temperature: float | None
    lm_top_p: float | None
    lm_cfg_scale: float | None
    steps: int | None
    guidance_scale: float | None
    shift: float | None
    cfg_start: float
    cfg_end: float
    timesteps: Sequence[float] | None
    seed: int | Sequence[int] | None
    variations: int
    model: str | None
    lora: str | None
    lora_scale: float
    format: AudioFormat | Literal["wav", "flac", "mp3", "ogg", "m4a"]
    bitrate_kbps: int | None
    loudness_lufs: float | None
    lane: Lane | Literal["high", "normal", "low"]
    timeout_s: int | None
    labels: Mapping[str, str]
    start_deadline_s: int | None
    webhook: str | None


def model(kind: type[M]) -> Callable[[bytes], M]:
    """Reads one record."""
    return kind.model_validate_json


def submit(
    song: GenerationSpec | str,
    options: JobOptions | None,
    idempotency_key: str | None,
    fields: JobFields,
) -> Call[Job]:
    """POST /v1/jobs, with what was said and no more, so that the server's own defaults hold.

    Raises:
        InvalidSpec: a field is unknown or out of bounds.
    """
    spec, chosen = _ordered(song, options, fields)
    body = spec.model_dump(mode="json", exclude_unset=True) | chosen.model_dump(mode="json", exclude_unset=True)
    # A key of its own: an answer that was lost on the way makes no second song.
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call("POST", "/v1/jobs", model(Job), body=body, headers=headers)


def _ordered(
    song: GenerationSpec | str, options: JobOptions | None, fields: JobFields
) -> tuple[GenerationSpec, JobOptions]:
    given: dict[str, Any] = dict(fields)
    try:
        chosen = options_of(options, given)
        if isinstance(song, str):
            spec = GenerationSpec.model_validate({"prompt": song, **given})
        else:
            spec = GenerationSpec.model_validate({**song.model_dump(exclude_unset=True), **given})
        return spec, chosen
    except ValidationError as error:
        raise invalid_spec(error) from error


def options_of(options: JobOptions | None, fields: dict[str, Any]) -> JobOptions:
    """The options with those that are among the fields, which are taken out of them. Raises ValidationError."""
    chosen = {name: fields.pop(name) for name in list(fields) if name in _OPTIONS}
    return JobOptions.model_validate({**(options.model_dump(exclude_unset=True) if options else {}), **chosen})


def get(job_id: str, hold_s: float = 0) -> Call[Job]:
    """GET /v1/jobs/{id}, answered once the job has ended, or after `hold_s`."""
    headers = {"Prefer": f"wait={int(hold_s)}"} if hold_s >= 1 else {}
    return Call("GET", job_path(job_id), model(Job), headers=headers, hold_s=hold_s)


def list_jobs(
    status: JobStatus | str | None, label: tuple[str, str] | None, limit: int, cursor: str | None
) -> Call[Page]:
    """GET /v1/jobs."""
    query = {"limit": limit, "status": status, "cursor": cursor, "label": "=".join(label) if label else None}
    return Call("GET", "/v1/jobs", _page, query={name: value for name, value in query.items() if value})


def _page(raw: bytes) -> Page:
    answer = json.loads(raw)
    return Page(tuple(Job.model_validate(job) for job in answer["jobs"]), answer.get("next_cursor"))


def cancel(job_id: str) -> Call[Job]:
    """POST /v1/jobs/{id}/cancel."""
    return Call("POST", f"{job_path(job_id)}/cancel", model(Job))


def erase(job_id: str) -> Call[None]:
    """DELETE /v1/jobs/{id}. A second one would find nothing."""
    return Call("DELETE", job_path(job_id), nothing, repeatable=False)


def events(job_id: str, last_event_id: str | None) -> Call[None]:
    """GET /v1/jobs/{id}/events."""
    headers = {"Accept": "text/event-stream"} | ({} if last_event_id is None else {"Last-Event-ID": last_event_id})
    return Call("GET", f"{job_path(job_id)}/events", nothing, headers=headers, hold_s=30)  # a comment comes every 15 s


def audio(job_id: str, index: int) -> Call[None]:
    """GET /v1/jobs/{id}/audio."""
    return Call("GET", f"{job_path(job_id)}/audio", nothing, query={"index": index})


def upload(size_bytes: int) -> Call[Upload]:
    """POST /v1/uploads. One that came twice lies there until retention erases it, and does no harm."""
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
    return Call("POST", "/v1/uploads", model(Upload), headers=headers, hold_s=60)


def erase_upload(upload_id: str) -> Call[None]:
    """DELETE /v1/uploads/{id}."""
    return Call("DELETE", f"/v1/uploads/{quote(upload_id, safe='')}", nothing, repeatable=False)


def usage(since: date, until: date) -> Call[TenantUsage]:
    """GET /v1/usage."""
    query = {"since": since.isoformat(), "until": until.isoformat()}
    return Call("GET", "/v1/usage", model(TenantUsage), query=query)


def queue() -> Call[QueueState]:
    """GET /v1/queue."""
    return Call("GET", "/v1/queue", model(QueueState))


def workers() -> Call[Workers]:
    """GET /v1/workers."""
    return Call("GET", "/v1/workers", model(Workers))


def models() -> Call[tuple[Model, ...]]:
    """GET /v1/models."""
    return Call("GET", "/v1/models", lambda raw: tuple(map(Model.model_validate, json.loads(raw)["models"])))


def anything(path: str) -> Call[dict[str, Any]]:
    """GET of any path, as JSON."""
    return Call("GET", path, json.loads)


def job_path(job_id: str) -> str:
    """Where a job is."""
    return f"/v1/jobs/{quote(job_id, safe='') or '-'}"  # without an id it would be the list


def nothing(_: bytes) -> None:
    """Reads what says nothing."""
    return
