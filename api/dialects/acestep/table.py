"""What becomes of ACE-Step 1.5's fields (docs/compatibility.md has the same for readers). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from api.dialects import fields
from api.dialects import musical_fields as musical
from api.dialects.acestep.names import audio_id, collect
from api.dialects.acestep.request import ReleaseTask
from api.dialects.acestep.samples import SIMPLE
from api.dialects.fields import Conversion, Table, To, recorded, renamer, sentences
from serinette.spec import INSTRUMENTAL, Task, invalid_spec

API: Final = "acestep-1.5"
# Tasks for which ACE-Step 1.5 asks its language model when `thinking` is true.
_THOUGHT_OF: Final = frozenset({Task.TEXT2MUSIC, Task.LEGO, Task.COMPLETE})
# As in ACE-Step 1.5's own: `Extract the VOCALS track from the audio:`, `Complete the input track with DRUMS | BASS:`.
_ONE_TRACK = re.compile(r"\bthe (.{1,40}?) track\b", re.IGNORECASE)
_TRACK_IN_INSTRUCTION: Final = {
    Task.EXTRACT: _ONE_TRACK,
    Task.LEGO: _ONE_TRACK,
    Task.COMPLETE: re.compile(r"\bwith (.{1,200}?):?\s*$", re.IGNORECASE),
}

Converted = Conversion[ReleaseTask]


def _filled(value: str | tuple[object, ...], _: Converted) -> object:
    return value if (value.strip() if isinstance(value, str) else value) else None


def _duration_s(seconds: float, task: Converted) -> float | None:
    if seconds > 0:
        return seconds
    task.adjust("is not chosen by a language model here: 60 s")
    return None


def _fraction(time: float, task: Converted) -> float:
    start = task.request.cfg_interval_start or 0.0
    if not 0.0 <= time <= 1.0:
        raise task.wrong(f"must be from 0 to 1, not {time:g}")
    if time < start:
        raise task.wrong(f"must not be less than cfg_interval_start ({start:g})")
    return round(1.0 - time, 9)  # so that 1 - 0.9 is 0.1


def _seed(seeds: tuple[int, ...], task: Converted) -> int | tuple[int, ...] | None:
    return None if task.request.use_random_seed else musical.seed(seeds, task)


def _source(path: str, task: Converted) -> str | None:
    if task.request.task_type is not Task.TEXT2MUSIC or task.request.full_analysis_only:
        return _audio(path, task)
    task.adjust("ignored, task text2music does not use it")
    return None


def _audio(path: str, task: Converted) -> str:
    return audio_id(task.field, path)


def _track_of_instruction(text: str, task: Converted) -> None:
    named = _TRACK_IN_INSTRUCTION.get(task.request.task_type)
    match = named and named.search(text)
    if match and task.request.task_type is Task.COMPLETE:
        tracks = tuple(name.strip().lower() for name in re.split(r"[|,]", match[1]) if name.strip())
        task.fields["tracks"] = task.fields.get("tracks") or tracks or None
    elif match:
        task.fields.setdefault("track", match[1].strip().lower())
    elif text.strip():
        task.adjust("has no effect; the task's own is used")


def _instrumental(wanted: bool, task: Converted) -> None:
    if wanted and str(task.fields.get("lyrics") or "").strip() not in {"", INSTRUMENTAL}:
        task.adjust("is true, so lyrics have no effect", used=True)
    if wanted:
        task.fields["lyrics"] = INSTRUMENTAL


def _described(query: str, task: Converted) -> None:
    """A wish: as upstream, what is written of it, and of a prompt behind it,
    stands in the place of prompt and lyrics, and is thought of.
    """
    if query.strip():
        prompt = str(task.fields.get("prompt") or "").strip()  # key and tempo, as some clients send them
        _from_wish(f"{query.strip(' .')}, {prompt}" if prompt else query, task)


def _sampled(wanted: bool, task: Converted) -> None:
    if wanted and not task.request.sample_query.strip():
        wish = str(task.fields.get("prompt") or "").strip()
        if not wish:
            task.adjust("has no wish to start from; written from an example")
        _from_wish(wish or SIMPLE[0].caption, task)


def _from_wish(wish: str, task: Converted) -> None:
    task.fields |= {"prompt": wish, "thinking": task.request.task_type in _THOUGHT_OF}
    if str(task.fields.get("lyrics") or "").strip() in {"", INSTRUMENTAL}:  # lyrics that are sent are kept
        task.fields["rewrite"] = "write"


def _formatted(wanted: bool, task: Converted) -> None:
    if wanted and "rewrite" not in task.fields:
        task.fields["rewrite"] = "format"


def _thinking(wanted: bool, task: Converted) -> bool | None:
    asked = wanted and task.request.task_type in _THOUGHT_OF and "audio_codes" not in task.fields
    return True if asked else None


def _analyzed(wanted: bool, task: Converted) -> None:
    """No song, but a text of the source: of all that may be sent with it, how it is written stays."""
    if wanted:
        kept = {"source_audio", "seed", "model", "lm_seed", "lm_temperature", "lm_top_p"}
        task.fields = {name: value for name, value in task.fields.items() if name in kept} | {"task": Task.DESCRIBE}


def _cot_caption(wanted: bool, task: Converted) -> None:
    thought = task.fields.get("thinking")
    if thought and not wanted:
        task.adjust("a planned song is generated from the planner's caption", used=True)
    elif wanted and not thought:
        task.ignored.append("use_cot_caption")


# In this order they are converted; names beside the field's own are those that ACE-Step 1.5's server takes.
TABLE: Final[Table] = {
    "prompt": To("prompt", also=("caption",)),
    "lyrics": To("lyrics"),
    "instrumental": To(convert=_instrumental, also=("is_instrumental",)),
    "sample_query": To(convert=_described, also=("description", "desc")),
    "sample_mode": To(convert=_sampled),
    "vocal_language": To("vocal_language", musical.language_of_song, also=("language",)),
    "audio_format": To("format", musical.audio_format),
    "task_type": To("task"),
    "batch_size": To("variations"),
    "bpm": To("bpm", musical.bpm),
    "key_scale": To("key_scale", musical.key_scale, also=("keyscale", "key")),
    "time_signature": To("time_signature", musical.time_signature, also=("timesignature",)),
    "audio_duration": To("duration_s", _duration_s, also=("duration", "target_duration")),
    "inference_steps": To("steps"),
    "guidance_scale": To("guidance_scale"),
    "shift": To("shift"),
    "timesteps": To("timesteps", _filled),
    # Theirs bound the flow's time, which falls from 1 to 0; ours bound the schedule's fraction, which rises.
    "cfg_interval_start": To("cfg_end", _fraction),
    "cfg_interval_end": To("cfg_start", _fraction),
    "use_random_seed": To(),
    "seed": To("seed", _seed),
    "src_audio_path": To("source_audio", _source, also=("source_audio_path", "ctx_audio_path")),
    "reference_audio_path": To("reference_audio", _audio, also=("ref_audio_path",)),
    "repainting_start": To("repaint_start_s"),
    "repainting_end": To("repaint_end_s", musical.repaint_end),
    "audio_cover_strength": To("cover_strength", also=("cover_strength",)),
    "audio_code_string": To("audio_codes", _filled, also=("audio_codes",)),
    "track_name": To("track", _filled),
    "track_classes": To("tracks", _filled, also=("instruments",)),
    "instruction": To(convert=_track_of_instruction),
    "model": To("model", musical.model, also=("model_name", "dit_model")),
    "lora": To("lora", also=("lora_name",)),
    "lora_scale": To("lora_scale"),
    "use_format": To(convert=_formatted),
    "thinking": To("thinking", _thinking),
    "lm_temperature": To("lm_temperature", musical.lm_number),
    "lm_top_p": To("lm_top_p", musical.lm_number),
    "lm_cfg_scale": To("lm_cfg_scale", musical.lm_number),
    "full_analysis_only": To(convert=_analyzed),
    "analysis_only": To(refused="text is not analyzed here; /format_input answers with metadata of prompt and lyrics"),
    "extract_codes_only": To(refused="audio codes are not handed out here"),
    # Without effect: they steer the language model, are the server's own business, or have no counterpart in diffusers.
    "use_cot_caption": To(convert=_cot_caption, also=("cot_caption", "cot-caption")),
    "use_cot_language": To(neutral=(False,), also=("cot_language", "cot-language")),
    "constrained_decoding": To(neutral=(True, False), also=("constrained",)),
    "constrained_decoding_debug": To(neutral=(False,)),
    "is_format_caption": To(neutral=(False,)),
    "allow_lm_batch": To(neutral=(True, False), also=("parallel_thinking",)),
    "use_tiled_decode": To(neutral=(True, False)),
    "use_adg": To(neutral=(False,)),
    "infer_method": To(neutral=("ode",)),
    "sampler_mode": To(neutral=("euler",)),
    "guidance_variant": To(neutral=("apg_classic",)),
    "velocity_norm_threshold": To(neutral=(0.0,)),
    "velocity_ema_factor": To(neutral=(0.0,)),
    "latent_shift": To(neutral=(0.0,)),
    "latent_rescale": To(neutral=(1.0,)),
    "cover_noise_strength": To(neutral=(0.0,)),
    "chunk_mask_mode": To(neutral=("auto",)),
    "dcw_enabled": To(neutral=(False,)),
    **dict.fromkeys(("dcw_mode", "dcw_scaler", "dcw_high_scaler", "dcw_wavelet", "eta", "momentum"), To(neutral=())),
    **dict.fromkeys(("lm_model_path", "lm_backend"), To(neutral=())),
    **dict.fromkeys(("lm_top_k", "lm_repetition_penalty", "lm_negative_prompt"), To(neutral=())),
    **dict.fromkeys(("guidance_params", "global_caption", "repaint_mode", "repaint_strength"), To(neutral=())),
    **dict.fromkeys(("repaint_latent_crossfade_frames", "repaint_wav_crossfade_sec"), To(neutral=())),
}
theirs: Final = renamer(TABLE)


def convert(body: Mapping[str, Any], uploads: Mapping[str, str], models: frozenset[str]) -> Conversion[ReleaseTask]:
    """What becomes of a body; `uploads` are ids of files that came along, by field.

    Raises:
        InvalidSpec: a field means nothing here.
        Unsupported: it asks for an analysis of text, or for audio codes.
    """
    sent = collect(body, {name: to.also for name, to in TABLE.items()})
    try:
        task = ReleaseTask.model_validate({**sent.values, **uploads})
    except ValidationError as error:
        raise invalid_spec(error) from error
    conversion = fields.convert(TABLE, task, sent.values, models)
    conversion.ignored += sent.unknown
    return conversion


# What text has of a task.
_OF_TEXT: Final = frozenset(
    {"prompt", "lyrics", "vocal_language", "duration_s", "bpm", "key_scale", "time_signature", "seed", "model"}
    | {"lm_seed", "lm_temperature", "lm_top_p", "lm_cfg_scale"}
)


def convert_text(body: Mapping[str, Any]) -> Conversion[ReleaseTask]:
    """What becomes of the body of a call that has text written of what would be a song. Raises InvalidSpec."""
    conversion = convert(body, {}, frozenset())
    task = Task(conversion.fields.get("rewrite", Task.FORMAT))
    conversion.fields = {name: value for name, value in conversion.fields.items() if name in _OF_TEXT} | {"task": task}
    if "vocal_language" not in conversion.request.model_fields_set:
        conversion.fields.pop("vocal_language", None)
    return conversion


def warnings(conversion: Conversion[ReleaseTask]) -> list[str]:
    """A sentence for everything that is not done as asked."""
    said = sentences(conversion.adjusted, [name for name in conversion.ignored if name != "format"])
    if "format" in conversion.ignored:
        said.append("format: stands for use_format in this API; audio_format chooses the file's format")
    return said


def record_of(conversion: Conversion[ReleaseTask]) -> dict[str, str]:
    """What travels with the job for the answers."""
    return recorded(API, warnings(conversion))
