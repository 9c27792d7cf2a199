"""What becomes of the seed's fields (docs/compatibility.md has the same for readers). Pure.

They were made for ACE-Step v1, the checkpoints here are of 1.5. A field that a client leaves out means the checkpoint's
own default, never v1's.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from api.dialects import fields
from api.dialects.fields import Conversion, Table, To, renamer
from api.dialects.seed.request import WITHOUT_COUNTERPART, GenerateMusicForm, GenerateMusicRequest
from serinette.errors import InvalidSpec
from serinette.spec import AudioFormat, AudioId, Task

# What v1 draws for `audio_duration` <= 0, in seconds.
DRAWN_DURATION_S: Final = (30.0, 240.0)
_AUDIO_ID: TypeAdapter[str] = TypeAdapter(AudioId)


def _first_seed(text: str, conversion: Conversion[GenerateMusicRequest]) -> int | None:
    seeds = [int(seed) for seed in text.split(",") if seed.strip()]
    if len(seeds) > 1:
        conversion.adjust("one song takes one seed: the first", seeds[0])
    return seeds[0] if seeds and seeds[0] >= 0 else None


def _guided_middle(share: float, conversion: Conversion[GenerateMusicRequest]) -> None:
    conversion.fields |= {"cfg_start": (1 - share) / 2, "cfg_end": (1 + share) / 2}


def _lora_scale(weight: float | None, conversion: Conversion[GenerateMusicRequest]) -> float | None:
    if "lora" in conversion.fields:
        return weight
    conversion.ignored.append("lora_weight")
    return None


# Without `audio_duration` and the reference audio, which mean something together only: see `convert`.
TABLE: Final[Table] = {
    "format": To("format"),
    "prompt": To("prompt"),
    "lyrics": To("lyrics"),
    "infer_step": To("steps"),
    "guidance_scale": To("guidance_scale"),
    "guidance_interval": To(convert=_guided_middle),
    "manual_seeds": To("seed", _first_seed),
    "lora_name_or_path": To("lora", lambda name, _: None if name == "none" else name),
    "lora_weight": To("lora_scale", _lora_scale),
    **dict.fromkeys(WITHOUT_COUNTERPART, To(neutral=())),
}
# Where the request is a form, `genre` is the prompt.
FORM_TABLE: Final[Table] = {**TABLE, "genre": To("prompt")}
# What means something together only, and is read in `convert`.
_TOGETHER: Final[Table] = {
    "audio_duration": To("duration_s"),
    "ref_audio_input": To("source_audio"),
    "ref_audio_strength": To("cover_strength"),
    **dict.fromkeys(("audio2audio_enable", "return_file_data"), To()),
}
theirs: Final = renamer({**TABLE, **_TOGETHER})
FIELDS: Final[Table] = {**FORM_TABLE, **_TOGETHER}


def convert(
    request: GenerateMusicRequest,
    upload_id: str | None = None,
    draw: Callable[[int], int] = secrets.randbelow,
    *,
    only: AudioFormat | None = None,
) -> Conversion[GenerateMusicRequest]:
    """What becomes of a request, with audio that came along as `upload_id` if any. `only`: the one format that the call
    answers, whatever is asked for.

    Raises:
        InvalidSpec: `ref_audio_input` is not an id of ours.
    """
    conversion = fields.convert(FORM_TABLE if isinstance(request, GenerateMusicForm) else TABLE, request)
    if only is not None:
        if "format" in request.model_fields_set and request.format is not only:
            conversion.adjust(f"this call answers {only}", only, "format")
        conversion.fields["format"] = only
    if "seed" not in conversion.fields:
        conversion.fields["seed"] = draw(2**32)
    source = upload_id or _reference(conversion)
    if source is None:
        conversion.fields["duration_s"] = _duration_s(conversion)
        return conversion
    conversion.fields |= {"task": Task.COVER, "source_audio": source}
    if request.ref_audio_strength is not None:
        conversion.fields["cover_strength"] = request.ref_audio_strength
    if "audio_duration" in request.model_fields_set:
        conversion.adjust("a cover has the length of its source", field="audio_duration")
    return conversion


def _duration_s(conversion: Conversion[GenerateMusicRequest]) -> float:
    seconds = conversion.request.audio_duration
    if seconds <= 0:
        # Of the song's own seed, so that seed and request name one song.
        seconds = round(random.Random(conversion.fields["seed"]).uniform(*DRAWN_DURATION_S), 1)  # noqa: S311  # no secret
        conversion.adjust("0 or less draws 30 to 240 s", seconds, "audio_duration")
    return seconds


def _reference(conversion: Conversion[GenerateMusicRequest]) -> str | None:
    """The audio to cover. As in v1, reference audio counts only where `audio2audio_enable` is true."""
    request = conversion.request
    if request.audio2audio_enable and request.ref_audio_input:
        try:
            return _AUDIO_ID.validate_python(request.ref_audio_input)
        except ValidationError as error:
            raise InvalidSpec(
                "ref_audio_input: must be the id of an upload, never a path or URL; "
                "send the audio to POST /v1/uploads first, or use POST /generate_music_with_audio",
                field="ref_audio_input",
            ) from error
    if request.audio2audio_enable:
        conversion.adjust("there is no ref_audio_input to follow", False, "audio2audio_enable")
    names = ("ref_audio_input", "ref_audio_strength")
    conversion.ignored += [name for name in names if getattr(request, name) not in {None, ""}]
    return None


def record_of(conversion: Conversion[GenerateMusicRequest]) -> dict[str, str]:
    """What travels with the job for the answers. Prompt and lyrics are not repeated: the spec holds them unchanged."""
    request = conversion.request
    names: set[str] = (GenerateMusicRequest.model_fields.keys() & request.model_fields_set) - {"prompt", "lyrics"}
    adjusted: list[dict[str, Any]] = [
        {"field": each.field, "sent": each.sent, "used": each.used, "reason": each.reason}
        for each in conversion.adjusted
    ]
    return {
        "return_file_data": json.dumps(request.return_file_data),
        "sent": json.dumps(request.model_dump(mode="json", include=names)),
        "adjusted": json.dumps(adjusted),
        "ignored": json.dumps(conversion.ignored),
    }
