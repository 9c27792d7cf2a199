"""The names of this dialect: many for one field, in several places of one body. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

# Names beside the field's own, as ACE-Step 1.5's server takes them; camelCase is taken for every one.
_ALSO: Final[Mapping[str, tuple[str, ...]]] = {
    "prompt": ("caption",),
    "sample_query": ("description", "desc"),
    "model": ("model_name", "dit_model"),
    "key_scale": ("keyscale", "key"),
    "time_signature": ("timesignature",),
    "audio_duration": ("duration", "target_duration"),
    "vocal_language": ("language",),
    "audio_cover_strength": ("cover_strength",),
    "audio_code_string": ("audio_codes",),
    "reference_audio_path": ("ref_audio_path",),
    "src_audio_path": ("source_audio_path", "ctx_audio_path"),
    "track_classes": ("instruments",),
    "constrained_decoding": ("constrained",),
    "use_cot_caption": ("cot_caption", "cot-caption"),
    "use_cot_language": ("cot_language", "cot-language"),
    "allow_lm_batch": ("parallel_thinking",),
    "lora": ("lora_name",),
}
# `format` means `use_format` there, though many who send it mean the file's.
_AMBIGUOUS: Final = {"use_format": "format"}
_BOOLEAN_WORDS: Final = frozenset({"1", "true", "yes", "y", "on", "0", "false", "no", "n", "off"})

# Where metadata may be nested, in the order in which a name counts; each an object, or its JSON as text.
_PARAM_OBJECT: Final = ("param_obj", "paramObj")
_METADATA: Final = ("metas", "meta", "metadata", "user_metadata", "userMetadata")
_CREDENTIALS: Final = frozenset({"ai_token", "aiToken"})

# What clients write into a field that they leave to the server.
_LEFT_OUT: Final = frozenset({"", "auto", "n/a", "none", "null", "undefined"})
_FREE_TEXT: Final = frozenset({"prompt", "lyrics", "instruction", "sample_query"})

# Ours and theirs, where they differ.
THEIR_NAMES: Final[Mapping[str, str]] = {
    "duration_s": "audio_duration",
    "steps": "inference_steps",
    "cfg_start": "cfg_interval_end",  # the flow's time falls where the schedule's fraction rises
    "cfg_end": "cfg_interval_start",
    "variations": "batch_size",
    "source_audio": "src_audio_path",
    "reference_audio": "reference_audio_path",
    "repaint_start_s": "repainting_start",
    "repaint_end_s": "repainting_end",
    "cover_strength": "audio_cover_strength",
    "audio_codes": "audio_code_string",
    "track": "track_name",
    "tracks": "track_classes",
    "format": "audio_format",
    "task": "task_type",
}
_LEADING = re.compile(r"^(\w+)(?=[:.])")
# Names that cannot be taken for a word of the sentence.
_WITHIN = re.compile(rf"\b({'|'.join(name for name in THEIR_NAMES if '_' in name)})\b")


@dataclass(frozen=True, slots=True)
class Fields:
    """What a body says, by the fields' own names; `unknown` names mean nothing, or hold no object where one goes."""

    values: Mapping[str, Any]
    unknown: tuple[str, ...]


def collect(body: Mapping[str, Any], known: frozenset[str]) -> Fields:
    """Find the `known` fields under any of their names: in the body, else in its param object, else in its metadata."""
    places = (body, _nested(body, _PARAM_OBJECT), _nested(body, _METADATA))
    used = {*_PARAM_OBJECT, *_METADATA, *_CREDENTIALS}
    values: dict[str, Any] = {}
    for field in known:
        names = tuple(_names(field))
        used.update(names)
        candidates = [place[name] for place in places for name in names if _says_something(field, place.get(name))]
        if candidates:
            values[field] = candidates[0]
    if "use_format" in known and "use_format" not in values and _is_boolean(body.get(_AMBIGUOUS["use_format"])):
        values["use_format"] = body["format"]
        used.add("format")
    unread = [name for name in (*_PARAM_OBJECT, *_METADATA) if body.get(name) and _object(body[name]) is None]
    return Fields(values, tuple(sorted({name for place in places for name in place} - used)) + tuple(unread))


def theirs(message: str) -> str:
    """A sentence of ours in the field names of this dialect."""
    leading = _LEADING.sub(lambda match: THEIR_NAMES.get(match[1], match[1]), message)
    return _WITHIN.sub(lambda match: THEIR_NAMES[match[1]], leading)


def _names(field: str) -> Iterator[str]:
    for name in (field, *_ALSO.get(field, ())):
        yield name
        first, *rest = name.split("_")
        if rest:
            yield first + "".join(map(str.capitalize, rest))


def _says_something(field: str, value: object) -> bool:
    if not isinstance(value, str) or field in _FREE_TEXT:
        return value is not None
    return value.strip().lower() not in _LEFT_OUT


def _is_boolean(value: object) -> bool:
    return isinstance(value, bool) or str(value).strip().lower() in _BOOLEAN_WORDS


def _nested(body: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    return _object(next((body[name] for name in names if body.get(name)), {})) or {}


def _object(value: object) -> dict[str, Any] | None:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
