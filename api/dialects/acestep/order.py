"""What becomes of a task: a spec, and a sentence for everything that is not done as asked. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from api.dialects.acestep.fields import collect
from api.dialects.acestep.request import KNOWN, WITHOUT_EFFECT, ReleaseTask
from api.dialects.acestep.tokens import audio_id
from serinette.errors import InvalidSpec, Unsupported
from serinette.spec import AudioFormat, GenerationSpec, Task, invalid_spec

_FORMATS: Final = {"opus": AudioFormat.OGG, "aac": AudioFormat.M4A, "wav32": AudioFormat.WAV}
_FORMAT_WARNINGS: Final = {
    "opus": "audio_format: opus comes in an Ogg container",
    "aac": "audio_format: aac comes in an MP4 container (m4a)",
    "wav32": "audio_format: wav has 16 bits here, not 32",
}
_LM = "ACE-Step's 5 Hz language model, which is not here"
# Tasks for which ACE-Step 1.5 asks its language model when `thinking` is true.
_THOUGHT_OF: Final = frozenset({Task.TEXT2MUSIC, Task.LEGO, Task.COMPLETE})
_KEY = re.compile(r"([A-G])\s*(#|b|♯|♭)?\s*(m|min|minor|maj|major)?", re.IGNORECASE)
# As in ACE-Step 1.5's own: `Extract the VOCALS track from the audio:`, `Complete the input track with DRUMS | BASS:`.
_ONE_TRACK = re.compile(r"\bthe (.{1,40}?) track\b", re.IGNORECASE)
_TRACK_IN_INSTRUCTION: Final = {
    Task.EXTRACT: _ONE_TRACK,
    Task.LEGO: _ONE_TRACK,
    Task.COMPLETE: re.compile(r"\bwith (.{1,200}?):?\s*$", re.IGNORECASE),
}
_MAX_LISTED_NAMES = 32


@dataclass(frozen=True, slots=True)
class Order:
    """What to submit. `dialect` comes back with the job and is read by results.py."""

    spec: GenerationSpec
    dialect: dict[str, str]


@dataclass(slots=True)
class _Mapping:
    task: ReleaseTask
    fields: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def take(self, **names: str) -> None:
        """Hand fields over as they are, those that were sent: ours=theirs."""
        for ours, name in names.items():
            if getattr(self.task, name) is not None and name in self.task.model_fields_set:
                self.fields[ours] = getattr(self.task, name)


def order(body: Mapping[str, Any], uploads: Mapping[str, str], models: frozenset[str]) -> Order:
    """Map a body; `uploads` are ids of files that came along, by field; `models` are those that workers or pools hold.

    Raises:
        InvalidSpec: a field is out of bounds; refusals.py tells it by the client's name.
        Unsupported: it needs a language model.
    """
    sent = collect(body, KNOWN)
    mapping = _Mapping(_checked({**sent.values, **uploads}))
    _refuse_what_needs_words(mapping.task)
    _map_song(mapping)
    _map_sampling(mapping)
    _map_seed(mapping)
    _map_audio(mapping)
    _map_tracks(mapping)
    _map_model(mapping, models)
    _warn_of_thinking(mapping)
    _warn_of_ignored(mapping, sent.values, sent.unknown)
    try:
        spec = GenerationSpec(**mapping.fields)
    except ValidationError as error:
        raise invalid_spec(error) from error
    return Order(spec, {"api": "acestep-1.5", "warnings": json.dumps(mapping.warnings, ensure_ascii=False)})


def _checked(values: dict[str, Any]) -> ReleaseTask:
    try:
        return ReleaseTask.model_validate(values)
    except ValidationError as error:
        raise invalid_spec(error) from error


def _refuse_what_needs_words(task: ReleaseTask) -> None:
    for name, does in (
        ("sample_query", "writing a song from a description"),
        ("sample_mode", "inventing a song"),
        ("analysis_only", "analysis"),
        ("full_analysis_only", "analysis"),
        ("extract_codes_only", "extraction of codes"),
    ):
        if getattr(task, name) and str(getattr(task, name)).strip():
            advice = "; send prompt and lyrics" if name.startswith("sample") else ""
            raise Unsupported(f"{name}: {does} needs {_LM}{advice}", field=name)


def _map_song(mapping: _Mapping) -> None:
    task = mapping.task
    mapping.take(prompt="prompt", lyrics="lyrics", task="task_type", variations="batch_size")
    mapping.fields.setdefault("variations", task.batch_size)
    if "vocal_language" in task.model_fields_set:
        mapping.fields["vocal_language"] = task.vocal_language.strip().replace("_", "-")
    mapping.fields["format"] = _FORMATS.get(task.audio_format) or AudioFormat(task.audio_format)
    if task.audio_format in _FORMAT_WARNINGS:
        mapping.warnings.append(_FORMAT_WARNINGS[task.audio_format])
    if task.bpm is not None and task.bpm > 0:
        mapping.fields["bpm"] = round(task.bpm)
        if mapping.fields["bpm"] != task.bpm:
            mapping.warnings.append(f"bpm: {task.bpm:g} is taken for {mapping.fields['bpm']}")
    if task.key_scale is not None:
        mapping.fields["key_scale"] = _key(task.key_scale)
    mapping.take(time_signature="time_signature")
    if task.audio_duration is not None and task.audio_duration > 0:
        mapping.fields["duration_s"] = task.audio_duration
    elif task.audio_duration is not None:
        mapping.warnings.append(f"audio_duration: choosing one needs {_LM}: 60 s")


def _key(text: str) -> str:
    match = _KEY.fullmatch(text.strip())
    if match is None:
        raise InvalidSpec(
            f"key_scale: must be a note and major or minor, for example C major or F# minor, not {text[:40]!r}",
            field="key_scale",
        )
    minor = match[3] == "m" or (match[3] or "").lower() in {"min", "minor"}
    return f"{match[1].upper()}{match[2] or ''} {'minor' if minor else 'major'}"


def _flow_time(name: str, given: float | None, default: float) -> float:
    time = default if given is None else given
    if not 0.0 <= time <= 1.0:
        raise InvalidSpec(f"{name}: must be from 0 to 1, not {time:g}", field=name)
    return time


def _map_sampling(mapping: _Mapping) -> None:
    task = mapping.task
    mapping.take(steps="inference_steps", guidance_scale="guidance_scale", shift="shift")
    # Theirs bound the flow's time, which falls from 1 to 0; ours bound the schedule's fraction, which rises.
    start = _flow_time("cfg_interval_start", task.cfg_interval_start, 0.0)
    end = _flow_time("cfg_interval_end", task.cfg_interval_end, 1.0)
    if end < start:
        raise InvalidSpec(
            f"cfg_interval_end: must not be less than cfg_interval_start ({start:g})", field="cfg_interval_end"
        )
    # Rounded, so that 1 - 0.9 is 0.1.
    mapping.fields |= {"cfg_start": round(1.0 - end, 9), "cfg_end": round(1.0 - start, 9)}
    if task.timesteps:
        mapping.fields["timesteps"] = task.timesteps


def _map_seed(mapping: _Mapping) -> None:
    task, count = mapping.task, mapping.fields["variations"]
    if task.use_random_seed or not task.seed:
        return
    first, given = task.seed[0], task.seed[: max(count, 1)]
    mapping.fields["seed"] = first
    if given != tuple(range(first, first + len(given))):
        mapping.warnings.append(f"seed: song i is generated with {first} + i; further seeds have no effect")


def _map_audio(mapping: _Mapping) -> None:
    task = mapping.task
    if task.src_audio_path and task.task_type is Task.TEXT2MUSIC:
        mapping.warnings.append("src_audio_path: ignored, task text2music does not use it")
    elif task.src_audio_path:
        mapping.fields["source_audio"] = audio_id("src_audio_path", task.src_audio_path)
    if task.reference_audio_path:
        mapping.fields["reference_audio"] = audio_id("reference_audio_path", task.reference_audio_path)
    mapping.take(repaint_start_s="repainting_start", cover_strength="audio_cover_strength")
    if task.repainting_end is not None and task.repainting_end > 0:
        mapping.fields["repaint_end_s"] = task.repainting_end
    if task.audio_code_string and task.audio_code_string.strip():
        mapping.fields["audio_codes"] = task.audio_code_string


def _map_tracks(mapping: _Mapping) -> None:
    task, told = mapping.task, mapping.task.instruction or ""
    track, tracks = task.track_name, task.track_classes
    named = _TRACK_IN_INSTRUCTION.get(task.task_type)
    match = named and named.search(told)
    if match and task.task_type is Task.COMPLETE:
        tracks = tracks or tuple(name.strip().lower() for name in re.split(r"[|,]", match[1]) if name.strip())
    elif match:
        track = track or match[1].strip().lower()
    if track:
        mapping.fields["track"] = track
    if tracks:
        mapping.fields["tracks"] = tracks
    if told.strip() and not match:
        mapping.warnings.append("instruction: has no effect; the task's own is used")


def _map_model(mapping: _Mapping, models: frozenset[str]) -> None:
    model = mapping.task.model
    if model in models:
        mapping.fields["model"] = model
    elif model is not None:
        here = f"held here: {', '.join(sorted(models))}" if models else "no worker is up"
        mapping.warnings.append(f"model: {model} is not held here ({here}); generated by the default")
    mapping.take(lora="lora", lora_scale="lora_scale")


def _warn_of_thinking(mapping: _Mapping) -> None:
    task = mapping.task
    if task.thinking and task.task_type in _THOUGHT_OF and "audio_codes" not in mapping.fields:
        mapping.warnings.append(f"thinking: needs {_LM}; generated from prompt and lyrics alone")
    if task.use_format:
        mapping.warnings.append(f"use_format: needs {_LM}; prompt and lyrics are used as written")


def _warn_of_ignored(mapping: _Mapping, sent: Mapping[str, Any], unknown: tuple[str, ...]) -> None:
    moot = [name for name, neutral in WITHOUT_EFFECT.items() if name in sent and _plain(sent[name]) not in neutral]
    names = [name[:64] for name in (*moot, *unknown) if name != "format"]
    if names:
        more = f" and {len(names) - _MAX_LISTED_NAMES} more" if len(names) > _MAX_LISTED_NAMES else ""
        mapping.warnings.append(f"without effect here: {', '.join(names[:_MAX_LISTED_NAMES])}{more}")
    if "format" in unknown:
        mapping.warnings.append("format: stands for use_format in this API; audio_format chooses the file's format")


def _plain(value: object) -> object:
    """A form's text as the value that it stands for."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in {"true", "false"}:
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text
