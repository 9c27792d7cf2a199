"""What the model was trained to read and to write: instructions, turns, and metadata as YAML between think tags.

The wording, the ranges and the order of fields are ACE-Step 1.5's (acestep/constants.py and the language model's
prompts, MIT): other words are other conditions to the model. NOTICE quotes them with their source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields

import yaml

from serinette.spec import INSTRUMENTAL, LANGUAGES, UNKNOWN_LANGUAGE

GENERATE = "Generate audio semantic tokens based on the given conditions:"
UNDERSTAND = "Understand the given musical conditions and describe the audio semantics accordingly:"
EXPAND = "Expand the user's input into a more detailed and specific musical description:"
FORMAT = "Format the user's input into a more detailed and specific musical description:"

THINK, END_OF_THINK = "<think>\n", "</think>"
# Every value of the fields that have finitely many, in the order that the model writes the fields in (YAML's: sorted).
# The caption, which is free, stands between bpm and duration.
CHOICES: Mapping[str, tuple[int | str, ...]] = {
    "bpm": tuple(range(30, 301)),
    "duration": tuple(range(10, 601)),
    "keyscale": tuple(f"{n}{sign} {mode}" for n in "ABCDEFG" for sign in ("", *"#b♯♭") for mode in ("major", "minor")),
    "language": LANGUAGES,
    "timesignature": (2, 3, 4, 6),
}

# A scalar that is quoted as a whole: more would be YAML of the model's own making.
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""")

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is known of a song, in a spec's words; None is not known."""

    caption: str | None = None
    bpm: int | None = None
    duration_s: float | None = None
    key_scale: str | None = None
    time_signature: str | None = None
    vocal_language: str | None = None

    def or_else(self, other: Metadata) -> Metadata:
        """What is known here, and the other's where nothing is."""
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        return Metadata(**{name: getattr(other, name) if value is None else value for name, value in mine.items()})

    def trained(self) -> dict[str, int | str]:
        """The fields that are known, as the model writes them."""
        known = {
            "bpm": self.bpm,
            "caption": self.caption or None,
            "duration": None if self.duration_s is None else max(1, round(self.duration_s)),
            "keyscale": self.key_scale and re.sub(r" ?(?=major|minor)", " ", self.key_scale, count=1),
            "language": self.vocal_language and _language(self.vocal_language),
            "timesignature": self.time_signature and _time_signature(self.time_signature),
        }
        return {name: value for name, value in known.items() if value is not None}

    @classmethod
    def of_trained(cls, written: Mapping[str, int | str]) -> Metadata:
        """What the model wrote, in a spec's words."""
        language = written.get("language", UNKNOWN_LANGUAGE)
        return cls(
            caption=_text(written.get("caption")),
            bpm=int(written["bpm"]) if "bpm" in written else None,
            duration_s=float(written["duration"]) if "duration" in written else None,
            key_scale=_text(written.get("keyscale"), lambda key: key.replace("♯", "#").replace("♭", "b")),
            time_signature=_text(written.get("timesignature")),
            vocal_language=None if language == UNKNOWN_LANGUAGE else str(language),
        )


def field_line(name: str, value: int | str) -> str:
    """One field as YAML, its line breaks included: long text is folded at 80 columns, as it was in training."""
    line: str = yaml.safe_dump({name: value}, allow_unicode=True)
    return line


def thought(metadata: Metadata, plain: Callable[[str], str] = str) -> str:
    """The assistant's turn before the codes, its texts made `plain`; without any metadata, what guidance leads from."""
    known = {name: plain(value) if isinstance(value, str) else value for name, value in metadata.trained().items()}
    return THINK + "".join(field_line(*item) for item in sorted(known.items())) + END_OF_THINK


def codes_text(codes: Iterable[int]) -> str:
    """Audio codes as text, one token each."""
    return "".join(f"<|audio_code_{code}|>" for code in codes)


def unfolded(text: str) -> str:
    """A caption as the model wrote it, perhaps quoted and folded as YAML, in one line."""
    line = " ".join(filter(None, map(str.strip, text.split("\n"))))
    if not _QUOTED.fullmatch(line):
        return line
    try:
        unquoted = str(yaml.safe_load(line)).strip()
    except (yaml.YAMLError, ValueError, OverflowError):
        return line  # an escape that stands for no character
    return unquoted if unquoted and unquoted.isprintable() else line


def request(instruction: str, user: str, assistant: str | None = None) -> list[Message]:
    """The turns of one request."""
    turns = [("system", f"# Instruction\n{instruction}\n\n"), ("user", user)]
    turns += [] if assistant is None else [("assistant", assistant)]
    return [{"role": role, "content": content} for role, content in turns]


def song_text(caption: str | None, lyrics: str) -> str:
    """What the user's turn says of a song; None leaves the caption out, which guidance leads away from."""
    head = "" if caption is None else f"# Caption\n{caption}\n\n"
    return f"{head}# Lyric\n{lyrics.strip() or INSTRUMENTAL}\n"


def _language(tag: str) -> str:
    """The trained language of a BCP-47 tag."""
    primary = tag.partition("-")[0].lower()
    return primary if primary in LANGUAGES else UNKNOWN_LANGUAGE


def _time_signature(signature: str) -> int | str:
    beats, _, unit = signature.partition("/")
    return int(beats) if unit in {"", "4"} or signature == "6/8" else signature


def _text(value: int | str | None, bend: Callable[[str], str] = str) -> str | None:
    return None if value is None else bend(str(value))
