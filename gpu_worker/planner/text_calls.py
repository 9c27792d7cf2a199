"""Text from the planner without a song: write one from a wish, put texts in order, describe what is heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from gpu_worker.planner import prompts
from gpu_worker.planner.decoding import Observe, Sampling
from gpu_worker.planner.planner import Answer, Planner, Question
from gpu_worker.planner.prompts import Metadata
from serinette.errors import InvalidSpec, Unsupported


@dataclass(frozen=True, slots=True)
class Write:
    """A wish in plain words. Of `given`, what is known of the song stands in the answer as it is."""

    wish: str
    instrumental: bool = False
    given: Metadata = field(default_factory=Metadata)
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Format:
    """A caption and lyrics (empty: instrumental) to be put in order."""

    caption: str
    lyrics: str = ""
    given: Metadata = field(default_factory=Metadata)
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Describe:
    """A song's audio codes."""

    codes: tuple[int, ...]
    given: Metadata = field(default_factory=Metadata)
    seed: int = 0
    sampling: Sampling = field(default_factory=partial(Sampling, temperature=0.3))


TextCall = Write | Format | Describe


def answer(planner: Planner, calls: Sequence[TextCall], observe: Observe) -> list[Answer | None]:
    """Caption, metadata and lyrics for each call, of any kind together; None for those that were given up.

    Raises:
        Unsupported: a song is to be described by a planner that knows no audio codes.
        InvalidSpec: the codes are not the planner's, there are none, or a text is longer than it can read.
    """
    return planner.answer([_question(planner, call) for call in calls], observe)


def _question(planner: Planner, call: TextCall) -> Question:
    lyrics = True
    if isinstance(call, Write):
        lyrics = not call.instrumental
        said = f"{planner.plain(call.wish)}\n\ninstrumental: {'true' if call.instrumental else 'false'}"
        messages = prompts.request(prompts.EXPAND, said)
    elif isinstance(call, Format):
        lyrics = bool(call.lyrics.strip())
        messages = prompts.request(prompts.FORMAT, planner.plain(prompts.song_text(call.caption, call.lyrics)).rstrip())
    else:
        if not planner.codebook:
            raise Unsupported("this planner knows no audio codes, so it cannot describe a song")
        if not call.codes:
            raise InvalidSpec("audio_codes: there are none to describe", field="audio_codes")
        planner.check_codes(call.codes)
        messages = prompts.request(prompts.UNDERSTAND, prompts.codes_text(call.codes))
    return Question(messages, None, call.given, lyrics, call.seed, call.sampling)
