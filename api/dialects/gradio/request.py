"""The seed's request and what becomes of it: a spec, and a record of what was honoured, adjusted and ignored.

Its fields were made for ACE-Step v1, ours are sung by 1.5 (docs/compatibility.md has the table). A field that a client
leaves out means the checkpoint's own default, never v1's.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from serinette.errors import InvalidSpec
from serinette.spec import (
    MAX_LORA_SCALE,
    MAX_SEED,
    AudioFormat,
    AudioId,
    GenerationSpec,
    PublishedName,
    Task,
    without_control_characters,
)

TAG_DEFAULT: Final = (
    "funk, pop, soul, melodic, electric guitar, tight drums, warm bass, keyboard, 105 BPM, groovy, upbeat, bright"
)
LYRIC_DEFAULT: Final = """[verse]
Street lamps wake along the bay
Windows glow and drift away
Every corner keeps the time
Footsteps falling into rhyme

[chorus]
Let it ring and let it rise
Paint the music on the skies
Hand in hand we move as one
Singing till the night is done

[verse]
Strings are humming soft and low
Drums come in to let us know
Morning waits but not for long
We will meet it with a song
"""

# What v1 draws for `audio_duration` <= 0, in seconds.
DRAWN_DURATION_S: Final = (30.0, 240.0)
NO_COUNTERPART: Final = "ACE-Step 1.5 has no counterpart: accepted and ignored."
_MAX_LISTED_NAMES = 32
Value = str | float | bool | None
_AUDIO_ID: TypeAdapter[str] = TypeAdapter(AudioId)
_LORA: TypeAdapter[str] = TypeAdapter(PublishedName)

_Lowered = BeforeValidator(lambda value: value.strip().lower() if isinstance(value, str) else value)
_Ignored = Field(None, description=NO_COUNTERPART, json_schema_extra={"deprecated": True})
_IgnoredText = Field(None, max_length=1_000, description=NO_COUNTERPART, json_schema_extra={"deprecated": True})


class GenerateMusicRequest(BaseModel):
    """The body of every generating call. Unknown fields are accepted and listed as ignored."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [
                {
                    "format": "mp3",
                    "audio_duration": 15.0,
                    "prompt": "jazz piano, smooth",
                    "lyrics": "",
                    "infer_step": 20,
                }
            ]
        },
    )

    format: Annotated[AudioFormat, _Lowered] = Field(AudioFormat.WAV, description="wav, mp3, ogg, flac or m4a.")
    audio_duration: float = Field(
        60.0, le=600, description="Seconds, 1 to 600; 0 or less draws 30 to 240 s. Ignored with reference audio."
    )
    prompt: str = Field(TAG_DEFAULT, max_length=8_192, description="Style, mood, instruments.")
    lyrics: str = Field(LYRIC_DEFAULT, max_length=16_384, description="Lyrics to be sung; empty means instrumental.")
    infer_step: int | None = Field(None, ge=1, le=200, description="Denoising steps; the checkpoint's own if left out.")
    guidance_scale: float | None = Field(
        None, ge=0, le=30, description="Guidance; the checkpoint's own if left out. Turbo checkpoints have none."
    )
    guidance_interval: float | None = Field(
        None, ge=0, le=1, description="Middle share of the steps to guide: 0.5 guides from 0.25 to 0.75."
    )
    manual_seeds: Annotated[str | None, Field(coerce_numbers_to_str=True)] = Field(
        None, max_length=400, description="One seed, or several with commas: the first is used."
    )
    audio2audio_enable: bool = Field(False, description="Generate a cover of `ref_audio_input`.")
    ref_audio_input: str | None = Field(
        None, max_length=1_000, description="Id of an upload (POST /v1/uploads) or of an earlier song; never a path."
    )
    ref_audio_strength: float | None = Field(
        None, ge=0, le=1, description="How closely the cover follows its source; 1 if left out."
    )
    lora_name_or_path: str = Field(
        "none", max_length=1_000, description="Name of a LoRA that the operator published, or `none`; never a path."
    )
    lora_weight: float | None = Field(None, description="0 to 4; without a LoRA it is accepted and ignored.")
    return_file_data: bool = Field(False, description="Answer audio bytes where the call would answer JSON.")

    scheduler_type: str | None = _IgnoredText
    cfg_type: str | None = _IgnoredText
    omega_scale: float | None = _Ignored
    guidance_interval_decay: float | None = _Ignored
    min_guidance_scale: float | None = _Ignored
    use_erg_tag: bool | None = _Ignored
    use_erg_lyric: bool | None = _Ignored
    use_erg_diffusion: bool | None = _Ignored
    oss_steps: str | None = _IgnoredText
    guidance_scale_text: float | None = _Ignored
    guidance_scale_lyric: float | None = _Ignored

    @field_validator("audio_duration")
    @classmethod
    def _long_enough(cls, seconds: float) -> float:
        if 0 < seconds < 1:
            raise ValueError("must be 1 to 600 seconds, or 0 or less to have 30 to 240 s drawn")
        return seconds

    _plain = field_validator("prompt", "lyrics")(without_control_characters)

    @field_validator("manual_seeds")
    @classmethod
    def _whole_numbers(cls, text: str | None) -> str | None:
        for seed in filter(None, map(str.strip, (text or "").split(","))):
            if not (seed.isascii() and seed.isdecimal() and int(seed) <= MAX_SEED):
                raise ValueError(f"must be whole numbers from 0 to {MAX_SEED}, with commas between them")
        return text

    @field_validator("lora_name_or_path")
    @classmethod
    def _a_name(cls, name: str) -> str:
        try:
            return "none" if name.strip().lower() in {"", "none"} else _LORA.validate_python(name)
        except ValidationError:
            raise ValueError("must be the name of a published LoRA, or `none`; paths are never opened") from None

    @field_validator("lora_weight")
    @classmethod
    def _can_be_sung(cls, weight: float | None, others: ValidationInfo) -> float | None:
        alone = others.data.get("lora_name_or_path") == "none"
        if weight is not None and not alone and not 0 <= weight <= MAX_LORA_SCALE:
            raise ValueError(f"must be 0 to {MAX_LORA_SCALE:g}")
        return weight

    @property
    def lora(self) -> str | None:
        """The LoRA to sing with."""
        return None if self.lora_name_or_path == "none" else self.lora_name_or_path

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds in `manual_seeds`."""
        return tuple(int(seed) for seed in (self.manual_seeds or "").split(",") if seed.strip())


@dataclass(frozen=True, slots=True)
class Order:
    """What to submit. `dialect` comes back with the job and is read by answers.py."""

    spec: GenerationSpec
    dialect: dict[str, str]


@dataclass(slots=True)
class _Mapping:
    fields: dict[str, Any]
    adjusted: list[dict[str, Any]]
    ignored: list[str]

    def adjust(self, field: str, sent: Value, used: Value, reason: str) -> None:
        self.adjusted.append({"field": field, "sent": sent, "used": used, "reason": reason})


def order(
    request: GenerateMusicRequest, upload_id: str | None = None, draw: Callable[[int], int] = secrets.randbelow
) -> Order:
    """Map a request, with audio that came along as `upload_id` if any.

    Raises:
        InvalidSpec: `ref_audio_input` is not an id of ours.
    """
    mapping = _Mapping(
        fields={"prompt": request.prompt, "lyrics": request.lyrics, "format": request.format},
        adjusted=[],
        ignored=_without_counterpart(request),
    )
    mapping.fields["seed"] = _seed(request, mapping, draw)
    _map_sampling(request, mapping)
    if request.lora:
        mapping.fields["lora"] = request.lora
        mapping.fields["lora_scale"] = 1.0 if request.lora_weight is None else request.lora_weight
    source = upload_id or _reference(request, mapping)
    if source is None:
        _map_duration(request, mapping)
    else:
        _map_cover(request, source, mapping)
    return Order(GenerationSpec(**mapping.fields), _dialect(request, mapping))


def _seed(request: GenerateMusicRequest, mapping: _Mapping, draw: Callable[[int], int]) -> int:
    if not request.seeds:
        return draw(2**32)
    if len(request.seeds) > 1:
        mapping.adjust("manual_seeds", request.manual_seeds, request.seeds[0], "one song takes one seed: the first")
    return request.seeds[0]


def _map_sampling(request: GenerateMusicRequest, mapping: _Mapping) -> None:
    if request.infer_step is not None:
        mapping.fields["steps"] = request.infer_step
    if request.guidance_scale is not None:
        mapping.fields["guidance_scale"] = request.guidance_scale
    if request.guidance_interval is not None:
        mapping.fields["cfg_start"] = (1 - request.guidance_interval) / 2
        mapping.fields["cfg_end"] = (1 + request.guidance_interval) / 2


def _map_duration(request: GenerateMusicRequest, mapping: _Mapping) -> None:
    seconds = request.audio_duration
    if seconds <= 0:
        # Of the song's own seed, so that seed and request name one song.
        seconds = round(random.Random(mapping.fields["seed"]).uniform(*DRAWN_DURATION_S), 1)  # noqa: S311  # no secret
        mapping.adjust("audio_duration", request.audio_duration, seconds, "0 or less draws 30 to 240 s")
    mapping.fields["duration_s"] = seconds


def _reference(request: GenerateMusicRequest, mapping: _Mapping) -> str | None:
    """The audio to cover. As in v1, reference audio counts only where `audio2audio_enable` is true."""
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
        mapping.adjust("audio2audio_enable", True, False, "there is no ref_audio_input to follow")
    names = ("ref_audio_input", "ref_audio_strength")
    mapping.ignored += [name for name in names if getattr(request, name) not in {None, ""}]
    return None


def _map_cover(request: GenerateMusicRequest, source: str, mapping: _Mapping) -> None:
    mapping.fields |= {"task": Task.COVER, "source_audio": source}
    if request.ref_audio_strength is not None:
        mapping.fields["cover_strength"] = request.ref_audio_strength
    if "audio_duration" in request.model_fields_set:
        mapping.adjust("audio_duration", request.audio_duration, None, "a cover has the length of its source")


def _without_counterpart(request: GenerateMusicRequest) -> list[str]:
    known = [
        name
        for name, field in GenerateMusicRequest.model_fields.items()
        if field.description == NO_COUNTERPART or (name == "lora_weight" and request.lora is None)
    ]
    unknown = [name[:64] for name in (request.model_extra or {})][:_MAX_LISTED_NAMES]
    return [name for name in known if getattr(request, name) is not None] + unknown


def _dialect(request: GenerateMusicRequest, mapping: _Mapping) -> dict[str, str]:
    """Prompt and lyrics are not repeated here: the spec holds them unchanged."""
    sent = request.model_dump(mode="json", include=set(GenerateMusicRequest.model_fields) - {"prompt", "lyrics"})
    sent = {name: sent[name] for name in sent if name in request.model_fields_set}
    return {
        "return_file_data": json.dumps(request.return_file_data),
        "sent": json.dumps(sent),
        "adjusted": json.dumps(mapping.adjusted),
        "ignored": json.dumps(mapping.ignored),
    }
