"""The spec of a song: one vocabulary for HTTP, Python, CLI, the queue and the tags of files."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
import secrets
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from annotated_types import MaxLen
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from serinette.errors import HandBack, InvalidSpec

# The highest that this version reads; incremented when it adds what older workers must not ignore. A spec has the
# lowest that does for it (`needs_schema`), so that workers of both versions share the others.
SCHEMA = 4

MAX_SEED = 2**63 - 1
MAX_VARIATIONS = 8
MAX_LORA_SCALE = 4.0
# The schedule is scaled by 1000 as float32, where closer steps would be equal.
MIN_TIMESTEP_FALL = 1e-6
_SORTED = json.JSONEncoder(sort_keys=True, ensure_ascii=False)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
# No codebook is that large, and Python refuses to parse numbers of thousands of digits.
_ENDLESS_NUMBER = re.compile(r"\d{19}")
_PLAIN_NUMBER = re.compile(r"-?\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,3})?", re.ASCII)


class Task(StrEnum):
    """The six tasks of ACE-Step, and three that a planner answers in text, without a song."""

    TEXT2MUSIC = "text2music"
    REPAINT = "repaint"
    COVER = "cover"
    EXTRACT = "extract"
    LEGO = "lego"
    COMPLETE = "complete"
    WRITE = "write"
    FORMAT = "format"
    DESCRIBE = "describe"

    @property
    def text_alone(self) -> bool:
        """Whether the result is text."""
        return self in {Task.WRITE, Task.FORMAT, Task.DESCRIBE}


class AudioFormat(StrEnum):
    """Containers a song can be delivered in. ogg holds Opus, m4a holds AAC."""

    WAV = "wav"
    FLAC = "flac"
    MP3 = "mp3"
    OGG = "ogg"
    M4A = "m4a"


# Ids that the gateway issued; never paths or URLs.
AudioId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,80}(/[0-7])?$")]
Track = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_ ]{0,40}$")]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
PublishedName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
KEY_SCALE = r"^[A-G](#|b|♯|♭)? ?(major|minor)$"

# Audio codes of a planner, by which ACE-Step 1.5 follows a song.
CODES_PER_S = 5
# What ACE-Step 1.5 reads for lyrics where there are none.
INSTRUMENTAL = "[Instrumental]"

# ACE-Step 1.5's languages of lyrics, and its word for any other.
UNKNOWN_LANGUAGE = "unknown"
_TRAINED = (
    "ar az bg bn ca cs da de el en es fa fi fr he hi hr ht hu id is it ja ko la lt ms ne nl no pa pl pt ro ru sa sk sr "
    "sv sw ta te th tl tr uk ur vi yue zh"
)
LANGUAGES = (*_TRAINED.split(), UNKNOWN_LANGUAGE)

# What a song's planner writes where it is left open.
METADATA = ("bpm", "key_scale", "time_signature")
# Fields with a default, which a planner writes nevertheless where they are left out.
LEFT_TO_TEXT = frozenset({"duration_s", "vocal_language"})
_NEEDS_SOURCE = {Task.REPAINT, Task.EXTRACT, Task.LEGO, Task.COMPLETE, Task.DESCRIBE}


def without_control_characters(text: str) -> str:
    """The text itself. Raises ValueError when it holds control characters other than line breaks and tabs."""
    if _CONTROL.search(text):
        raise ValueError("must not contain control characters other than line breaks and tabs")
    return text


def plain_number(value: object) -> object:
    """A number, or the text of one as programs write it: pydantic would also read true as 1, and the text 1_0 as 10.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bool) or (isinstance(value, str) and not _PLAIN_NUMBER.fullmatch(value)):
        raise ValueError(f"must be a number, not {json.dumps(value)[:40]}")
    return value


# Numbers where clients can only send text (queries, forms), or commonly do (the other dialects).
PlainNumber = BeforeValidator(plain_number)
TextInt = Annotated[int, PlainNumber]
TextFloat = Annotated[float, PlainNumber]

Part = TypeVar("Part", bound=BaseModel)


class RecordModel(BaseModel):
    """What is stored, or sent to processes of another version: an older reader ignores fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class BoundedInput(BaseModel):
    """Input of clients. The numbers of fields and of items are checked before their values: pydantic makes an error for
    each wrong item and each unknown field, which takes seconds for a list that fills a body.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few_enough(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        for name, value in given.items():
            if name not in cls.model_fields:
                meant = difflib.get_close_matches(str(name)[:40], cls.model_fields, 1)
                raise _refusal(
                    "extra_forbidden",
                    name,
                    f"is no field here; did you mean {meant[0]}?" if meant else "is no field here",
                )
            if isinstance(value, bool | str) and name in cls._numbers():
                raise _refusal("number_type", name, f"must be a number, not {json.dumps(value)[:40]}")
            if isinstance(value, list | tuple | dict):
                for bound in cls.model_fields[name].metadata:
                    if isinstance(bound, MaxLen) and len(value) > bound.max_length:
                        raise _refusal(
                            "too_long", name, f"must have at most {bound.max_length} items, not {len(value)}"
                        )
                if name in cls._numbers() and any(isinstance(item, bool | str) for item in value):
                    raise _refusal("number_type", name, "must hold numbers only")
        return given

    @classmethod
    @cache
    def _numbers(cls) -> frozenset[str]:
        """Fields whose value is a number: pydantic would read true as 1, and the text 1_0 as 10."""
        return frozenset(name for name, field in cls.model_fields.items() if _is_number(field.annotation))

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """Parse the JSON of `to_wire`, possibly of another version.

        Raises:
            InvalidSpec: it does not hold a valid spec.
        """
        try:
            return cls.model_validate({name: value for name, value in wire.items() if name in cls.model_fields})
        except ValidationError as error:
            raise invalid_spec(error) from error

    def only(self, model: type[Part]) -> Part:
        """The fields that are `model`'s, not checked again; of them those count as set that the client wrote."""
        written = self.model_fields_set & model.model_fields.keys()
        defaults: Part = _defaults_of(model)
        return defaults.model_copy(update={name: getattr(self, name) for name in written})


@cache
def _defaults_of(model: type[Part]) -> Part:
    return model.model_construct()  # takes several times as long as a copy


def _is_number(annotation: object) -> bool:
    return annotation in {int, float} or any(_is_number(each) for each in get_args(annotation) if each is not str)


def _refusal(
    kind: Literal["extra_forbidden", "number_type", "too_long"], name: object, message: str
) -> PydanticCustomError:
    # A client's field name may be long, or contain a lone surrogate, which cannot be encoded in a response.
    shown = str(name)[:80].encode(errors="replace").decode()
    return PydanticCustomError(kind, "{name}: {message}", {"name": shown, "message": message})


class GenerationSpec(BoundedInput):
    """Spec of a job's songs. `None` means the checkpoint's default, or that the model chooses."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    prompt: str = Field("", max_length=8_192, description="Caption: style, mood, instruments.")
    lyrics: str = Field("", max_length=16_384, description="Lyrics to be sung; empty means instrumental.")
    vocal_language: str = Field(
        "en", pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$", description="BCP-47 language of the lyrics."
    )
    duration_s: float = Field(
        60.0, ge=1, le=600, description="Length in seconds. Tasks on source audio keep its length."
    )
    bpm: int | None = Field(None, ge=30, le=300, description="Beats per minute.")
    key_scale: str | None = Field(None, pattern=KEY_SCALE, description="For example `C major` or `F# minor`.")
    time_signature: str | None = Field(None, pattern=r"^([2-9]|1[0-2])(/(2|4|8|16))?$", description="Beats per bar.")

    task: Task = Field(
        Task.TEXT2MUSIC,
        description="Task; all but text2music, write and format work on `source_audio`. Write, format and describe "
        "generate text and no song, in `result.texts`: write, of a wish in plain words, a caption, metadata and lyrics "
        "(with lyrics `[Instrumental]`: none); format puts prompt and lyrics into the form that the model was trained "
        "on; describe says the same of `source_audio`. Metadata, length and language that are given are kept.",
    )
    source_audio: AudioId | None = Field(None, description="Upload id, or `{job_id}/{index}` of an earlier song.")
    reference_audio: AudioId | None = Field(None, description="Upload or song id whose timbre to follow.")
    repaint_start_s: float | None = Field(
        None,
        ge=-600,
        le=600,
        description="Start of the window to generate again. Of repaint, a negative one continues the song before its "
        "beginning.",
    )
    repaint_end_s: float | None = Field(
        None,
        ge=0,
        le=600,
        description="End of the window to generate again. Of repaint, one beyond the source's end continues the song.",
    )
    track: Track | None = Field(None, description="Track for extract and lego, e.g. `vocals`.")
    tracks: tuple[Track, ...] | None = Field(None, min_length=1, max_length=12, description="Tracks for complete.")
    cover_strength: float = Field(1.0, ge=0, le=1, description="How closely a cover follows its source.")
    audio_codes: str | None = Field(None, max_length=200_000, description="Semantic codes from a language model.")

    steps: int | None = Field(None, ge=1, le=200, description="Denoising steps.")
    guidance_scale: float | None = Field(None, ge=0, le=30, description="Classifier-free guidance; turbo ignores it.")
    shift: float | None = Field(None, ge=0.1, le=10, description="Time shift of the flow schedule.")
    cfg_start: float = Field(0.0, ge=0, le=1, description="Fraction of the schedule at which guidance starts.")
    cfg_end: float = Field(1.0, ge=0, le=1, description="Fraction of the schedule at which guidance ends.")
    timesteps: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = Field(
        None, min_length=1, max_length=200, description="Custom schedule, falling from at most 1."
    )
    seed: Seed | tuple[Seed, ...] | None = Field(
        None, description="Drawn and reported when left out. A list has one for each variation."
    )
    thinking: bool = Field(
        False,
        description="A planner first writes a caption made of the prompt, the metadata that is left open and, if it "
        "knows them, audio codes, which the song follows; see the song's `plan`. Without a planner ignored, with a "
        "warning.",
    )
    rewrite: Literal["write", "format"] | None = Field(
        None,
        description="A planner first writes prompt and lyrics anew, as the tasks of these names do, and the song is "
        "generated from what it wrote; see the song's `plan`. Without a planner ignored, with a warning.",
    )
    lm_seed: Seed | None = Field(
        None, description="Of the planner; variation number i uses lm_seed + i. Left out: the song's own."
    )
    lm_temperature: float | None = Field(None, ge=0, le=2, description="Of the planner; 0 takes the likeliest.")
    lm_top_p: float | None = Field(None, ge=0.01, le=1, description="Nucleus sampling of the planner.")
    lm_cfg_scale: float | None = Field(None, ge=1, le=10, description="Guidance of the planner; 1: none.")
    variations: int = Field(
        1, ge=1, le=MAX_VARIATIONS, description="Songs in this job; of one seed, number i uses seed + i."
    )

    model: PublishedName | None = Field(None, description="A model that the operator published.")
    lora: PublishedName | None = Field(None, description="A LoRA that the operator published.")
    lora_scale: float = Field(1.0, ge=0, le=MAX_LORA_SCALE, description="Strength of the LoRA.")

    format: AudioFormat = Field(AudioFormat.MP3, description="Container of the song.")
    bitrate_kbps: int | None = Field(None, ge=32, le=320, description="For mp3, ogg and m4a.")
    loudness_lufs: float | None = Field(None, ge=-40, le=-5, description="EBU R128 target; left alone when null.")

    @field_validator("prompt", "lyrics")
    @classmethod
    def _plain(cls, text: str) -> str:
        return without_control_characters(text)

    @field_validator("seed", mode="before")
    @classmethod
    def _few_seeds(cls, seed: object) -> object:
        if isinstance(seed, list | tuple) and len(seed) > MAX_VARIATIONS:
            raise ValueError(f"must have at most {MAX_VARIATIONS} items, one for each variation, not {len(seed)}")
        return seed

    @field_validator("timesteps")
    @classmethod
    def _falling(cls, timesteps: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if timesteps and any(earlier - later < MIN_TIMESTEP_FALL for earlier, later in itertools.pairwise(timesteps)):
            raise ValueError(f"must fall by at least {MIN_TIMESTEP_FALL:f} from one step to the next")
        return timesteps

    @field_validator("audio_codes")
    @classmethod
    def _codes_are_short(cls, codes: str | None) -> str | None:
        if codes and _ENDLESS_NUMBER.search(codes):
            raise ValueError("a code has at most 18 digits")
        return codes

    @model_validator(mode="after")
    def _task_has_what_it_needs(self) -> Self:
        if self.task in _NEEDS_SOURCE and self.source_audio is None:
            raise ValueError(f"source_audio: task {self.task} needs it; upload one with POST /v1/uploads")
        if self.task is Task.COVER and self.source_audio is None and not self.audio_codes:
            raise ValueError("source_audio: task cover needs it, or audio_codes")
        if self.task in {Task.EXTRACT, Task.LEGO} and self.track is None:
            raise ValueError(f"track: task {self.task} needs it, e.g. vocals or drums")
        if self.task is Task.COMPLETE and self.tracks is None:
            raise ValueError("tracks: task complete needs at least one")
        start, end = self.repaint_start_s, self.repaint_end_s
        if start is not None and end is not None and end <= start:
            raise ValueError(f"repaint_end_s: must be greater than repaint_start_s ({start})")
        if self.task is Task.LEGO and start is not None and start < 0:
            raise ValueError("repaint_start_s: must not be negative for task lego; only repaint continues a song")
        if "write" in {self.task, self.rewrite} and self.lyrics.strip() not in {"", INSTRUMENTAL}:
            raise ValueError(f"lyrics: write writes them; leave them out, or send {INSTRUMENTAL} for none")
        if self.task in {Task.WRITE, Task.FORMAT} and not (self.prompt.strip() or self.lyrics.strip()):
            raise ValueError(f"prompt: task {self.task} needs words to start from")
        if self.cfg_end < self.cfg_start:
            raise ValueError(f"cfg_end: must not be less than cfg_start ({self.cfg_start})")
        return self

    @model_validator(mode="after")
    def _every_variation_has_a_seed(self) -> Self:
        if isinstance(self.seed, tuple):
            if len(self.seed) != self.variations:
                raise ValueError(f"seed: has {len(self.seed)} items; send one for each of {self.variations} variations")
            return self
        last = MAX_SEED - self.variations + 1
        if self.seed is not None and self.seed > last:
            raise ValueError(f"seed: must be at most {last} with {self.variations} variations, each having its own")
        return self

    def seeded(self) -> GenerationSpec:
        """The same spec with a seed drawn, so that a retry generates the same song."""
        return self if self.seed is not None else self.model_copy(update={"seed": secrets.randbelow(2**32)})

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each variation, of a spec that was `seeded`."""
        if isinstance(self.seed, tuple):
            return self.seed
        return tuple((self.seed or 0) + index for index in range(self.variations))

    @property
    def planned(self) -> bool:
        """Whether a planner is asked before the song is generated."""
        return (self.thinking or self.rewrite is not None) and not self.task.text_alone

    @property
    def left_to_text(self) -> frozenset[str]:
        """Fields that were left out and that a planner writes, whatever their defaults are."""
        written = LEFT_TO_TEXT if self.task.text_alone else {"vocal_language"} if self.rewrite else frozenset()
        return frozenset(written - self.model_fields_set)

    @property
    def lm_seeds(self) -> tuple[int, ...]:
        """The planner's seed of each variation, of a spec that was `seeded`."""
        if self.lm_seed is None:
            return self.seeds
        return tuple((self.lm_seed + index) % (MAX_SEED + 1) for index in range(self.variations))

    @property
    def needs_schema(self) -> int:
        """The lowest schema of a worker that reads this spec."""
        if self.task is Task.DESCRIBE:
            return 4
        if self.planned or self.task.text_alone:
            return 3
        continues = self.repaint_start_s is not None and self.repaint_start_s < 0
        return 2 if isinstance(self.seed, tuple) or continues else 1

    def digest(self) -> str:
        """SHA-256 of all fields that differ from their defaults: compares specs of a repeated Idempotency-Key.

        Computed before the seed is drawn. A field that the client set to its default value changes nothing.
        """
        return hashlib.sha256(_SORTED.encode(self._asked_for()).encode()).hexdigest()

    def to_wire(self) -> dict[str, Any]:
        """JSON for the queue: defaults left out, `schema` added."""
        return {"schema": self.needs_schema, **self._asked_for()}

    def _asked_for(self) -> dict[str, Any]:
        """What the client asks for. Of text, a length and a language that are given as the defaults are no less given:
        those that are left out are written.
        """
        asked = self.model_dump(mode="json", exclude_defaults=True)
        if self.task.text_alone or self.rewrite:
            asked |= self.model_dump(mode="json", include=set(LEFT_TO_TEXT & self.model_fields_set))
        return asked

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Self:
        """As for all input; raises HandBack, too: a newer gateway wrote it, and a newer worker must generate it."""
        if wire.get("schema", 0) > SCHEMA:
            raise HandBack(
                f"the spec has schema {wire['schema']}, this worker knows {SCHEMA}: a newer worker must take it"
            )
        return super().from_wire(wire)


class Planned(RecordModel):
    """What a planner wrote, for a song or as text. `None`: nothing was written of it."""

    caption: str | None = Field(None, description="In detail, made of the prompt; the song is generated from it.")
    lyrics: str | None = Field(None, description="Those of a song that is not rewritten are the spec's.")
    bpm: int | None = None
    duration_s: float | None = Field(None, description="Of text alone; that of a song is the spec's.")
    key_scale: str | None = None
    time_signature: str | None = None
    vocal_language: str | None = Field(None, description="That of a song that is not rewritten is the spec's.")
    codes: int = Field(0, description="Audio codes that the song follows; they stand in the tags of its file.")

    def filled_into(self, spec: GenerationSpec) -> GenerationSpec:
        """The spec with the metadata of the plan where it leaves them open."""
        written = {name: getattr(self, name) for name in METADATA if getattr(spec, name) is None}
        return spec.model_copy(update={name: value for name, value in written.items() if value is not None})

    def applied_to(self, spec: GenerationSpec, audio_codes: str | None) -> GenerationSpec:
        """The spec that generates the planned song without a planner: all that it has is kept but for the prompt, in
        whose place the caption stands, and for lyrics that were written anew.
        """
        written = {"prompt": self.caption, "lyrics": self.lyrics, "audio_codes": audio_codes}
        if "vocal_language" not in spec.model_fields_set:
            written["vocal_language"] = self.vocal_language
        known = {name: value for name, value in written.items() if value is not None}
        return self.filled_into(spec).model_copy(update={**known, "thinking": False, "rewrite": None})


def invalid_spec(error: ValidationError) -> InvalidSpec:
    """InvalidSpec for pydantic's first error, with its field."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    field = ".".join(str(part) for part in first["loc"]) or message.partition(":")[0]
    return InvalidSpec(message if message.startswith(f"{field}:") else f"{field}: {message}", field=field)
