"""Fields that several dialects have: keys, metres, languages, tempi, seeds and models as people write them. Pure.

Each converter is for a row of a table (fields.py).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from api.dialects.fields import Conversion
from serinette.spec import LANGUAGES, MAX_SEED, MAX_VARIATIONS, UNKNOWN_LANGUAGE, AudioFormat, Task, TextFloat

# Tasks whose result is a song: calls that answer with one have no place for text.
SongTask: TypeAlias = Literal[Task.TEXT2MUSIC, Task.REPAINT, Task.COVER, Task.EXTRACT, Task.LEGO, Task.COMPLETE]
# What clients write into a field that they leave to the server.
LEFT_OUT: Final = frozenset({"", "auto", "n/a", "none", "null", "undefined"})
FORMATS: Final = ("mp3", "wav", "wav32", "flac", "opus", "aac", "ogg", "m4a")
_MAPPED_FORMATS: Final = {
    "opus": (AudioFormat.OGG, "opus comes in an Ogg container"),
    "aac": (AudioFormat.M4A, "aac comes in an MP4 container (m4a)"),
    "wav32": (AudioFormat.WAV, "wav has 16 bits here, not 32"),
}
_SHOWN: Final = 40
_LM_BOUNDS: Final = {"temperature": (0.0, 2.0), "top_p": (0.01, 1.0), "cfg_scale": (1.0, 10.0)}
# Patterns with several gaps take long of a long one.
_LONGEST: Final = 64

_KEY = re.compile(
    r"(?:(?:in\s+(?:the\s+)?)?key\s+of\s+)?([A-G])[\s-]*(#|b|♯|♭|sharp|flat)?[\s-]*"
    r"(?:(natural|harmonic|melodic)\s+(?=min))?(m|min|minor|moll|maj|major|dur|ionian|dorian|phrygian|lydian|mixolydian|aeolian|locrian)?(?:\s+(?:key|mode|scale))?",
    re.IGNORECASE,
)
_SIGNS: Final = {"sharp": "#", "flat": "b"}
_MINOR: Final = frozenset({"min", "minor", "moll", "dorian", "phrygian", "aeolian", "locrian"})
# Modes by another name than their key's: minor and major are what the model knows.
_MODES: Final = frozenset({"dorian", "phrygian", "lydian", "mixolydian", "locrian"})
_WHOLE = re.compile(r"(-?\d{1,40})(?:\.0*)?", re.ASCII)
_METRE = re.compile(r"([2-9]|1[0-2])(?:\.0+)?(?:\s*[/:-]\s*(2|4|8|16))?(?:\s+time)?", re.IGNORECASE)
# Names of languages, and tags that stand for one of the model's.
_SAID: Final = (
    "arabic=ar azerbaijani=az bulgarian=bg bengali=bn bangla=bn catalan=ca czech=cs danish=da german=de greek=el "
    "english=en spanish=es persian=fa farsi=fa finnish=fi french=fr hebrew=he hindi=hi croatian=hr haitian=ht "
    "hungarian=hu indonesian=id icelandic=is italian=it japanese=ja korean=ko latin=la lithuanian=lt malay=ms "
    "nepali=ne dutch=nl norwegian=no punjabi=pa polish=pl portuguese=pt romanian=ro russian=ru sanskrit=sa "
    "slovak=sk serbian=sr swedish=sv swahili=sw tamil=ta telugu=te thai=th tagalog=tl filipino=tl turkish=tr "
    "ukrainian=uk urdu=ur vietnamese=vi cantonese=yue chinese=zh mandarin=zh 中文=zh 普通话=zh 粤语=yue 日本語=ja "
    "한국어=ko español=es français=fr deutsch=de italiano=it português=pt русский=ru auto=unknown cmn=zh fil=tl "
    "in=id iw=he jp=ja kr=ko cn=zh nb=no nn=no eng=en jpn=ja kor=ko zho=zh spa=es fra=fr deu=de rus=ru"
)
_NAMES: Final[dict[str, str]] = dict(entry.split("=") for entry in _SAID.split())


Lowered: Final = BeforeValidator(lambda value: value.strip().lower() if isinstance(value, str) else value)
ShortText: TypeAlias = Annotated[str, Field(max_length=1_000)]
FileFormat: TypeAlias = Annotated[
    str,
    Lowered,
    Field(description=f"One of {', '.join(FORMATS)}; opus comes in Ogg, aac in MP4, wav32 with 16 bits: reported."),
]


def says_something(value: object, *, free_text: bool) -> bool:
    """Whether a client that sent this did not leave the field to the server. Free text may be empty, or `none`."""
    if not isinstance(value, str) or free_text:
        return value is not None
    return value.strip().lower() not in LEFT_OUT


def parsed_seeds(value: object) -> tuple[int, ...]:
    """`7`, `"10,99"` or `[10, 99]`. Raises ValueError."""
    parts: list[Any] = value if isinstance(value, list) else str(value).split(",")
    if len(parts) > MAX_VARIATIONS:
        raise ValueError(f"must be at most {MAX_VARIATIONS} numbers, one for each song")
    try:
        seeds = tuple(_whole(str(part).strip()) for part in parts if str(part).strip())
    except (ValueError, OverflowError) as error:
        raise ValueError("must be whole numbers, with commas between them") from error
    if any(seed > MAX_SEED for seed in seeds):
        raise ValueError(f"must not be above {MAX_SEED}")
    return seeds


class SongFields(BaseModel):
    """Fields that requests of several dialects have, under the same names."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    task_type: Annotated[SongTask, Lowered] = Field(
        Task.TEXT2MUSIC, description="All but text2music work on a source; the reference is the timbre."
    )
    instrumental: bool | None = Field(None, description="True: lyrics have no effect.")
    vocal_language: ShortText = Field("en", description="A tag or a name; what the model does not know is reported.")
    bpm: TextFloat | None = Field(None, description="30 to 300; 0 or less is left to the model.")
    key_scale: ShortText | None = Field(
        None,
        examples=["C Major", "Am"],
        description="`C Major`, `Am`, `B-flat major`. A mode is taken for major or minor, what is no key is left to "
        "the model; both reported.",
    )
    time_signature: Annotated[ShortText | None, Field(coerce_numbers_to_str=True)] = Field(
        None, examples=["4", "6/8"], description="`4`, `6/8`. What is none is left to the model, reported."
    )
    guidance_scale: TextFloat | None = Field(None, description="Left out: the checkpoint's own. Turbo has none.")
    seed: tuple[int, ...] = Field((), description="One, or one for each song with commas; -1 leaves it open.")
    repainting_start: TextFloat | None = Field(None, description="Below 0 the song is continued before its beginning.")
    repainting_end: TextFloat | None = Field(
        None, description="Not above 0: the end of the source; beyond it the song is continued."
    )
    audio_cover_strength: TextFloat | None = Field(
        None, description="The source for the first `int(steps x strength)` steps, then the text alone."
    )

    _seeds = field_validator("seed", mode="before")(parsed_seeds)


def known_key_scale(text: str) -> tuple[str, str | None] | None:
    """The key in a spec's words, and what it was taken for where it is another's; None for what is no key."""
    first, _, other = text.partition("/")
    match = _KEY.fullmatch(first.strip()) if len(text) <= _LONGEST else None
    if match is None or (other and _KEY.fullmatch(other.strip()) is None):
        return None
    note, sign, mode = match[1].upper(), match[2] or "", match[4] or ""
    minor = mode == "m" or mode.lower() in _MINOR
    key = f"{note}{_SIGNS.get(sign.lower(), sign)} {'minor' if minor else 'major'}"
    another = other or mode.lower() in _MODES or (match[3] or "natural").lower() != "natural"
    return key, key if another else None


def known_time_signature(text: str) -> str | None:
    """Beats per bar in a spec's words; None for what is none."""
    match = _METRE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        return None
    return f"{match[1]}/{match[2]}" if match[2] else match[1]


def known_language(text: str) -> str | None:
    """A BCP-47 tag of a language that the model knows; None for a language that it does not know."""
    tag = text.strip().replace("_", "-")
    first, _, rest = tag.partition("-")
    if first.lower() in LANGUAGES:
        return tag
    known = _NAMES.get(tag.lower()) or _NAMES.get(first.lower())
    if known is None or known == UNKNOWN_LANGUAGE:
        return known
    return f"{known}-{rest}" if rest and rest.isascii() and rest.isalnum() else known


def audio_format(name: str, asked: Conversion[Any]) -> AudioFormat:
    """The file's format, or the nearest one. Raises InvalidSpec."""
    if name not in FORMATS:
        raise asked.wrong(f"must be one of {', '.join(FORMATS)}")
    used, reason = _MAPPED_FORMATS.get(name) or (AudioFormat(name), None)
    if reason:
        asked.adjust(reason)
    return used


def key_scale(text: str, asked: Conversion[Any]) -> str | None:
    """A key, or a mode by the nearest one; what is none is left to the model."""
    known = known_key_scale(text)
    if known is None:
        asked.adjust(f"{text.strip()[:_SHOWN]} is no key that the model knows; left to the model")
        return None
    if known[1]:
        asked.adjust(f"{text.strip()[:_SHOWN]} is taken for {known[1]}; the model knows major and minor, one at a time")
    return known[0]


def time_signature(text: str, asked: Conversion[Any]) -> str | None:
    """Beats per bar; what is none is left to the model."""
    known = known_time_signature(text)
    if known is None:
        asked.adjust(f"{text.strip()[:_SHOWN]} is no metre that the model knows; left to the model")
    return known


def language(text: str, asked: Conversion[Any]) -> str | None:
    """A language by its tag or name; what the model does not know is its word for that."""
    if text.strip().lower() in LEFT_OUT - {"auto"}:
        return None
    known = known_language(text)
    if known is None:
        asked.adjust(f"{text.strip()[:_SHOWN]} is not one of the model's languages; generated as {UNKNOWN_LANGUAGE}")
    return known or UNKNOWN_LANGUAGE


def language_of_song(text: str, asked: Conversion[Any]) -> str | None:
    """The same; a language that is not sent is left to a planner that writes the song's lyrics."""
    left = "vocal_language" not in asked.request.model_fields_set and asked.fields.get("rewrite") == "write"
    return None if left else language(text, asked)


def lm_number(number: float, asked: Conversion[Any]) -> float | None:
    """How a planner is sampled, within our bounds. Only of songs that it is asked for: clients send these with all."""
    if not (asked.fields.get("thinking") or asked.fields.get("rewrite")):
        return None
    least, most = _LM_BOUNDS[asked.field.removeprefix("lm_")]
    bounded = min(max(number, least), most)
    if bounded != number:
        asked.adjust(f"{number:g} is taken for {bounded:g}", used=bounded)
    return bounded


def repaint_end(end_s: float, asked: Conversion[Any]) -> float | None:
    """Not above 0 is the source's end; but what lies before the song may end where it begins."""
    before = (asked.request.repainting_start or 0) < 0
    return end_s if end_s > 0 or (before and end_s == 0) else None


def bpm(tempo: float, asked: Conversion[Any]) -> int | None:
    """Whole beats a minute; not above 0 leaves them to the model."""
    if tempo <= 0:
        return None
    if round(tempo) != tempo:
        asked.adjust(f"{tempo:g} is taken for {round(tempo)}")
    return round(tempo)


def _whole(text: str) -> int:
    """`42`, or `42.0` of clients that know one kind of number; through a float alone big seeds would change."""
    match = _WHOLE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:_SHOWN]} is not whole")
    return int(match[1])


def seed(seeds: tuple[int, ...], asked: Conversion[Any]) -> int | tuple[int, ...] | None:
    """Each of `batch_size` songs its seed, -1 being none. Songs without one follow the first seed, so that the same
    request means the same songs.
    """
    count = max(asked.request.batch_size, 1)
    given = seeds[:count]
    first = next((seed for seed in given if seed >= 0), None)
    if first is None:
        return None
    if len(seeds) > count:
        asked.adjust(f"{len(seeds)} seeds for {count} {'song' if count == 1 else 'songs'}: the last have no effect")
    if len(given) == 1:
        return first
    own = [*given, *[-1] * (count - len(given))]
    if min(own) < 0:
        asked.adjust(f"songs without a seed of their own are generated with {first} + their number, or the next unused")
    for index, seed in enumerate(own):
        if seed < 0:
            own[index] = next(free for free in _from(first + index) if free not in own)
    filled = tuple(own)
    return first if filled == tuple(range(first, first + count)) else filled


def _from(seed: int) -> Iterator[int]:
    return (number % (MAX_SEED + 1) for number in itertools.count(seed))


def model(name: str, asked: Conversion[Any]) -> str | None:
    """A model that is held here; another one is replaced by the default."""
    if name in asked.models:
        return name
    here = f"held here: {', '.join(sorted(asked.models))}" if asked.models else "no worker is up"
    asked.adjust(f"{name} is not held here ({here}); generated by the default")
    return None
