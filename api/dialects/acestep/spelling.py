"""Keys, metres and languages as people write them, in the words that the model was trained on. Pure."""

from __future__ import annotations

import re
from typing import Final

from serinette.spec import LANGUAGES, UNKNOWN_LANGUAGE

_KEY = re.compile(
    r"([A-G])[\s-]*(#|b|♯|♭|sharp|flat)?[\s-]*"
    r"(m|min|minor|moll|maj|major|dur|ionian|dorian|phrygian|lydian|mixolydian|aeolian|locrian)?(?:\s+(?:key|mode|scale))?",
    re.IGNORECASE,
)
_SIGNS: Final = {"sharp": "#", "flat": "b"}
_MINOR: Final = frozenset({"min", "minor", "moll", "dorian", "phrygian", "aeolian", "locrian"})
# Modes by another name than their key's: minor and major are what the model knows.
_MODES: Final = frozenset({"dorian", "phrygian", "lydian", "mixolydian", "locrian"})
_METRE = re.compile(r"([2-9]|1[0-2])(?:\s*[/:-]\s*(2|4|8|16))?(?:\s+time)?", re.IGNORECASE)
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


def key_scale(text: str) -> tuple[str, str | None] | None:
    """The key in a spec's words, and what it was taken for where it is another's; None for what is no key."""
    match = _KEY.fullmatch(text.strip())
    if match is None:
        return None
    note, sign, mode = match[1].upper(), match[2] or "", match[3] or ""
    minor = mode == "m" or mode.lower() in _MINOR
    key = f"{note}{_SIGNS.get(sign.lower(), sign)} {'minor' if minor else 'major'}"
    return key, key if mode.lower() in _MODES else None


def time_signature(text: str) -> str | None:
    """Beats per bar in a spec's words; None for what is none."""
    match = _METRE.fullmatch(text.strip())
    if match is None:
        return None
    return f"{match[1]}/{match[2]}" if match[2] else match[1]


def language(text: str) -> str | None:
    """A BCP-47 tag of a language that the model knows; None for one that it does not."""
    tag = text.strip().replace("_", "-")
    first, _, rest = tag.partition("-")
    if first.lower() in LANGUAGES:
        return tag
    known = _NAMES.get(tag.lower()) or _NAMES.get(first.lower())
    if known is None or known == UNKNOWN_LANGUAGE:
        return known
    return f"{known}-{rest}" if rest and rest.isascii() and rest.isalnum() else known
