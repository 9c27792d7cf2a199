"""Examples for POST /create_random_sample, in all the names under which clients look for their parts."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Sample:
    """A song to try."""

    caption: str
    lyrics: str
    bpm: int | None
    key_scale: str
    duration_s: float
    language: str = "en"
    time_signature: str = "4"

    def documented(self) -> dict[str, Any]:
        """As documented (`key_scale`, `vocal_language`), and as the official server really answers `custom_mode`."""
        return {
            "caption": self.caption,
            "lyrics": self.lyrics,
            "bpm": self.bpm,
            "key_scale": self.key_scale,
            "keyscale": self.key_scale,
            "time_signature": self.time_signature,
            "timesignature": self.time_signature,
            "duration": self.duration_s,
            "vocal_language": self.language,
            "language": self.language,
            "think": False,
        }

    def simple(self) -> dict[str, Any]:
        """The same, and what the official server really answers `simple_mode`."""
        return self.documented() | {"description": self.caption, "instrumental": not self.lyrics}


# `simple_mode` wants a line to start from, `custom_mode` a whole song.
SIMPLE: Final = (
    Sample("a slow waltz for accordion and brushed drums", "", 92, "G major", 60, time_signature="3"),
    Sample("solo piano in an empty hall, long reverb", "", 68, "E minor", 90),
    Sample("driving funk with slap bass and a brass section", "", 108, "A minor", 60),
    Sample("dusty lo-fi beat, vinyl crackle, sleepy guitar", "", 78, "D major", 60),
    Sample("a hurdy-gurdy drone with fiddles, a village dance", "", 120, "D minor", 60, time_signature="6"),
)
CUSTOM: Final = (
    Sample(
        "warm folk pop, fingerpicked guitar, soft female voice, close harmonies in the chorus",
        "[Verse]\nThere's a kettle on the stove and the window's turning gray\n"
        "I have counted every minute that you've been away\n\n"
        "[Chorus]\nCome home by the river, come home by the mill\nThe light on the landing is burning still\n",
        96,
        "C major",
        120,
    ),
    Sample(
        "静かなバラード、ピアノとストリングス、女性ボーカル",
        "[Verse]\n窓に雨の音 灯りは小さく\n手紙はまだ白いまま 夜だけが深く\n\n"
        "[Chorus]\n朝が来たら 歌になるだろう\n名もない道を 君と歩こう\n",
        72,
        "E major",
        120,
        language="ja",
    ),
)


def random_sample(kind: str) -> dict[str, Any]:
    """One of the examples of `simple_mode`; of `custom_mode` for any other word."""
    return secrets.choice(SIMPLE).simple() if kind == "simple_mode" else secrets.choice(CUSTOM).documented()
