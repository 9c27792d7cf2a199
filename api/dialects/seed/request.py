"""The body of the seed's generating calls: types and bounds. What becomes of each field is in table.py."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import UploadFile
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from api.dialects.musical_fields import Lowered
from serinette.spec import (
    MAX_LORA_SCALE,
    MAX_SEED,
    AudioFormat,
    PlainNumber,
    PublishedName,
    TextFloat,
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

_NO_COUNTERPART: Final = "ACE-Step 1.5 has no counterpart: accepted and ignored."
_LORA: TypeAdapter[str] = TypeAdapter(PublishedName)

_MAX_LISTED: Final = 64


def _joined(value: object) -> object:
    """`[10, 20]` as `10,20`, and 10 as `10`: clients send lists and numbers where v1 took text."""
    if isinstance(value, list):
        return ",".join(str(each) for each in value[:_MAX_LISTED])
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_Joined = Annotated[str | None, BeforeValidator(_joined)]
_Ignored = Field(None, description=_NO_COUNTERPART, json_schema_extra={"deprecated": True})
_IgnoredText = Field(None, max_length=1_000, description=_NO_COUNTERPART, json_schema_extra={"deprecated": True})


class GenerateMusicRequest(BaseModel):
    """The body of every generating call. Unknown fields are accepted and listed as ignored; null counts as left out,
    but for `lyrics`, where it means none.
    """

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

    format: Annotated[AudioFormat, Lowered] = Field(AudioFormat.WAV, description="wav, mp3, ogg, flac or m4a.")
    audio_duration: Annotated[float, Field(le=600), PlainNumber] = Field(
        60.0,
        description="Seconds, 1 to 600; 0 or less draws 30 to 240 s by the seed. A cover keeps its source's length.",
    )
    prompt: str = Field(TAG_DEFAULT, max_length=8_192, description="Style, mood, instruments.")
    lyrics: str = Field(
        LYRIC_DEFAULT, max_length=16_384, description="Lyrics to be sung; empty and null mean instrumental."
    )
    infer_step: Annotated[int, Field(ge=1, le=200), PlainNumber] | None = Field(
        None, description="Denoising steps; the checkpoint's own if left out."
    )
    guidance_scale: Annotated[float, Field(ge=0, le=30), PlainNumber] | None = Field(
        None, description="Guidance; the checkpoint's own if left out. Turbo checkpoints have none."
    )
    guidance_interval: Annotated[float, Field(ge=0, le=1), PlainNumber] | None = Field(
        None, description="Middle share of the steps to guide: 0.5 guides from 0.25 to 0.75."
    )
    manual_seeds: _Joined = Field(
        None, max_length=400, description="One seed, or several with commas: the first is used; -1 draws one."
    )
    audio2audio_enable: bool = Field(False, description="Generate a cover of `ref_audio_input`.")
    ref_audio_input: str | None = Field(
        None,
        max_length=1_000,
        description="Id of an upload (POST /v1/uploads) or `{request_id}/0`; a path is refused, "
        "never opened, never erased. Ignored unless `audio2audio_enable` is true.",
    )
    ref_audio_strength: Annotated[float, Field(ge=0, le=1), PlainNumber] | None = Field(
        None,
        description="How closely the cover follows its source; 1 if left out. v1 started from the "
        "noised source, 1.5 follows its semantic codes for that share of the steps.",
    )
    lora_name_or_path: str = Field(
        "none", max_length=1_000, description="Name of a LoRA that the operator published, or `none`; never a path."
    )
    lora_weight: TextFloat | None = Field(None, description="0 to 4; without a LoRA it is accepted and ignored.")
    return_file_data: bool = Field(False, description="Answer audio bytes where the call would answer JSON.")

    scheduler_type: str | None = _IgnoredText
    cfg_type: str | None = _IgnoredText
    omega_scale: TextFloat | None = _Ignored
    guidance_interval_decay: TextFloat | None = _Ignored
    min_guidance_scale: TextFloat | None = _Ignored
    use_erg_tag: bool | None = _Ignored
    use_erg_lyric: bool | None = _Ignored
    use_erg_diffusion: bool | None = _Ignored
    oss_steps: _Joined = _IgnoredText
    guidance_scale_text: TextFloat | None = _Ignored
    guidance_scale_lyric: TextFloat | None = _Ignored

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, given: object) -> object:
        if not isinstance(given, dict) or None not in given.values():
            return given
        sent = {name: value for name, value in given.items() if value is not None}
        return {"lyrics": "", **sent} if "lyrics" in given else sent

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
            if seed != "-1" and not (seed.isascii() and seed.isdecimal() and int(seed) <= MAX_SEED):
                raise ValueError(f"must be whole numbers from 0 to {MAX_SEED}, or -1, with commas between them")
        return text

    @field_validator("lora_name_or_path")
    @classmethod
    def _published_name(cls, name: str) -> str:
        try:
            return "none" if name.strip().lower() in {"", "none"} else _LORA.validate_python(name)
        except ValidationError:
            raise ValueError("must be the name of a published LoRA, or `none`; paths are never opened") from None

    @field_validator("lora_weight")
    @classmethod
    def _within_bounds(cls, weight: float | None, others: ValidationInfo) -> float | None:
        alone = others.data.get("lora_name_or_path") == "none"
        if weight is not None and not alone and not 0 <= weight <= MAX_LORA_SCALE:
            raise ValueError(f"must be 0 to {MAX_LORA_SCALE:g}")
        return weight


class GenerateMusicForm(GenerateMusicRequest):
    """The same as a form, in which the prompt is called `genre`. Blank fields count as left out."""

    genre: str | None = Field(None, max_length=8_192, description="The prompt; it counts before `prompt`.")

    _plain_genre = field_validator("genre")(without_control_characters)


class GenerateMusicWithAudio(GenerateMusicRequest):
    """The same as a form, with a file to make a cover of. Blank fields count as left out."""

    audio_file: UploadFile = Field(description="Audio of any common format.")


class GenerateMusicWithBase64(GenerateMusicRequest):
    """The same with the audio to make a cover of inside."""

    audio_base64: str = Field(description="The file in base64; a data URL is accepted, too.", repr=False)


WITHOUT_COUNTERPART: Final = tuple(
    name for name, field in GenerateMusicRequest.model_fields.items() if field.description == _NO_COUNTERPART
)
