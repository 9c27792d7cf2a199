"""A task of ACE-Step 1.5's clients: types only. Bounds are the spec's; what becomes of each field is in table.py."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from api.dialects.body import read_json
from api.dialects.musical_fields import FileFormat, Lowered, ShortText, SongFields
from serinette.spec import PublishedName, TextFloat, TextInt

DEFAULT_BATCH_SIZE: Final = 2

# More than any list here may have: what is beyond is not looked at, and the spec's bound refuses the rest.
_MAX_PARTS: Final = 256


def _track_names(value: object) -> object:
    """`drums,bass`, `DRUMS | BASS`, `["drums"]` as JSON text, or a list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = read_json(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, str):
        value = value.replace("|", ",").split(",", _MAX_PARTS)
    if isinstance(value, list):
        value = value[:_MAX_PARTS]
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return [name.strip().lower() for name in value if name.strip()]
    return value


def _numbers(value: object) -> object:
    """`0.97,0.76,0` or a list of numbers; the zero at which every schedule ends is not a step."""
    if isinstance(value, str):
        value = [part.strip() for part in value.strip("[] ").split(",", _MAX_PARTS)[:_MAX_PARTS] if part.strip()]
    if isinstance(value, list):
        value = value[:_MAX_PARTS]
    return value[:-1] if isinstance(value, list) and value and _is_zero(value[-1]) else value


def _is_zero(value: object) -> bool:
    try:
        return float(str(value)) == 0
    except ValueError:
        return False


class ReleaseTask(SongFields):
    """The fields of POST /release_task that have a meaning here, by their snake_case names."""

    model_config = ConfigDict(extra="ignore")

    prompt: str = Field("", description="Style, mood, instruments. Also `caption`.")
    lyrics: str = Field("", description="Lyrics to be sung; empty means instrumental.")
    audio_format: FileFormat = "mp3"
    model: PublishedName | None = Field(None, description="For a model that is not held here, the default generates.")

    audio_duration: TextFloat | None = Field(None, description="1 to 600 s; left out or not above 0: 60 s.")

    inference_steps: TextInt | None = Field(None, description="Left out: the checkpoint's own.")
    shift: TextFloat | None = Field(None, description="Left out: the checkpoint's own.")
    timesteps: Annotated[tuple[TextFloat, ...] | None, BeforeValidator(_numbers)] = Field(
        None, description="A falling schedule, as a list or with commas.", examples=["0.97,0.76,0.5,0.28,0"]
    )
    cfg_interval_start: TextFloat | None = Field(
        None, description="Bound of the flow's time, which falls from 1 to 0: our end is 1 - start."
    )
    cfg_interval_end: TextFloat | None = Field(None, description="The same: our start is 1 - end.")
    use_random_seed: bool | None = Field(None, description="True has a seed drawn even if one is sent.")
    batch_size: TextInt = Field(DEFAULT_BATCH_SIZE, description="Songs, 1 to 8; of one seed, number i has seed + i.")

    src_audio_path: ShortText | None = Field(
        None, description="A song's URL as returned here, or an upload's id; no path."
    )
    reference_audio_path: ShortText | None = Field(None, description="The same, for the timbre.")
    audio_code_string: str | None = Field(None, description="Semantic codes; of several, the first.")
    track_name: Annotated[str | None, Lowered] = Field(
        None, description="For extract and lego; or read out of `instruction`."
    )
    track_classes: Annotated[tuple[str, ...] | None, BeforeValidator(_track_names)] = Field(
        None, description="For complete; or read out of `instruction`."
    )
    instruction: ShortText | None = Field(None, description="Only the track that it names is heard.")
    lora: PublishedName | None = Field(None, description="Ours: a LoRA of this task alone.")
    lora_scale: TextFloat | None = Field(None, description="Ours.")

    thinking: bool = Field(
        False, description="The worker's planner thinks first; where there is none, the song has a warning instead."
    )
    use_format: bool = Field(False, description="The planner puts prompt and lyrics in order first; likewise.")
    sample_mode: bool = Field(False, description="The prompt is a wish, of which the planner writes all; likewise.")
    sample_query: str = Field("", description="The wish, in place of the prompt; likewise.")
    use_cot_caption: bool | None = Field(None, description="Whether the planner's caption is used: it always is.")
    lm_temperature: TextFloat | None = Field(None, description="Of the planner, 0 to 2.")
    lm_top_p: TextFloat | None = Field(None, description="Of the planner, 0.01 to 1.")
    lm_cfg_scale: TextFloat | None = Field(None, description="Guidance of the planner, 1 to 10.")
    full_analysis_only: bool = Field(
        False, description="No song: the planner describes the source. 400 where there is none."
    )
    analysis_only: bool = Field(False, description="Text is not analyzed here; see /format_input.")
    extract_codes_only: bool = Field(False, description="Audio codes are not handed out here.")

    @field_validator("audio_code_string", mode="before")
    @classmethod
    def _first_codes(cls, value: object) -> object:
        return value[0] if isinstance(value, list) and value else value
