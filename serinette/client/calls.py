"""One request to the gateway, and how its answer is read. Pure: serinette/client/network.py sends it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from serinette.job import Job, JobOptions
from serinette.names import Lane
from serinette.spec import AudioFormat, BoundedInput, Task, invalid_spec

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and what its answer becomes. `read` raises ValueError for what is none of ours."""

    method: str
    path: str
    read: Callable[[bytes], T]
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    on_headers: Callable[[Mapping[str, str]], None] = lambda _: None  # is given the answer's headers, before `read`
    repeatable: bool = True  # doing it twice is the same as once
    hold_s: float = 0.0  # so long the gateway may be silent on purpose


class JobOptionFields(TypedDict, total=False):
    """Options of a job; see JobOptions for meaning and bounds."""

    lane: Lane | Literal["high", "normal", "low"]
    timeout_s: int | None
    labels: Mapping[str, str]
    start_deadline_s: int | None
    webhook: str | None


class JobFields(JobOptionFields, total=False):
    """Fields of a song and its job; see GenerationSpec for meaning and bounds."""

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


def model(kind: type[M]) -> Callable[[bytes], M]:
    """Reads one record."""
    return kind.model_validate_json


def listed(kind: type[M], name: str) -> Callable[[bytes], tuple[M, ...]]:
    """Reads the records that an answer lists under a name."""
    return lambda raw: tuple(map(kind.model_validate, json.loads(raw)[name]))


def nothing(_: bytes) -> None:
    """Reads what says nothing."""
    return


def job_path(job_id: str) -> str:
    """Where a job is."""
    return f"/v1/jobs/{quote(job_id, safe='') or '-'}"  # without an id it would be the list


def audio(job_id: str, index: int) -> Call[None]:
    """GET of one song."""
    return Call("GET", f"{job_path(job_id)}/audio", nothing, {"index": index})


def keyed(idempotency_key: str | None) -> dict[str, str]:
    """The header by which an answer that was lost on the way makes nothing a second time: a key of its own."""
    return {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}


def ordered(
    path: str,
    kind: type[BoundedInput],
    fields: Mapping[str, Any],
    options: JobOptions | None,
    idempotency_key: str | None,
) -> Call[Job]:
    """POST of a job with what was said and no more, so that the server's own defaults hold. `fields`: the spec's, and
    options that win over `options`.

    Raises:
        InvalidSpec: a field is unknown or out of bounds.
    """
    chosen = options.model_dump(exclude_unset=True) if options else {}
    chosen |= {name: value for name, value in fields.items() if name in JobOptions.model_fields}
    try:
        said = (
            JobOptions.model_validate(chosen),
            kind.model_validate({name: value for name, value in fields.items() if name not in JobOptions.model_fields}),
        )
    except ValidationError as error:
        raise invalid_spec(error) from error
    body = {name: value for each in said for name, value in each.model_dump(mode="json", exclude_unset=True).items()}
    return Call("POST", path, model(Job), body=body, headers=keyed(idempotency_key))


def sized(body: Path | bytes, content_type: str = "application/octet-stream") -> dict[str, str]:
    """Headers of a body that is not JSON."""
    size_bytes = len(body) if isinstance(body, bytes) else body.stat().st_size
    return {"Content-Type": content_type, "Content-Length": str(size_bytes)}


def uploaded(path: str, kind: type[M], body: Path | bytes) -> Call[M]:
    """POST of a file. A file that came twice lies there until retention erases it, and does no harm."""
    return Call("POST", path, model(kind), headers=sized(body), hold_s=60)
