"""The fields of a job as keyword arguments, for editors and type checkers: those of GenerationSpec and JobOptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from serinette.names import Lane
from serinette.spec import AudioFormat, Task


class JobFields(TypedDict, total=False):
    """Fields of a song and its job; see GenerationSpec and JobOptions for meaning and bounds."""

    lyrics: str
    vocal_language: str
    duration_s: float
    bpm: int | None
    key_scale: str | None
    time_signature: str | None
    task: Task | Literal["text2music", "repaint", "cover", "extract", "lego", "complete"]
    source_audio: str | None
    reference_audio: str | None
    repaint_start_s: float | None
    repaint_end_s: float | None
    track: str | None
    tracks: Sequence[str] | None
    cover_strength: float
    audio_codes: str | None
    steps: int | None
    guidance_scale: float | None
    shift: float | None
    cfg_start: float
    cfg_end: float
    timesteps: Sequence[float] | None
    seed: int | None
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
