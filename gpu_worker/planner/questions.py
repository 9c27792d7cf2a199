"""What can be asked of a planner in words, as pure functions: a song's metadata, and text without a song."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpu_worker.planner import prompts
from gpu_worker.planner.decoding import Sampling
from gpu_worker.planner.prompts import Metadata
from serinette.errors import InvalidSpec
from serinette.spec import CODES_PER_S

_KNOWN_NOTHING = Metadata()
_SAMPLING = Sampling()
DESCRIBING = Sampling(temperature=0.3)


@dataclass(frozen=True, slots=True)
class Song:
    """What is asked of one song. `given` stands in its plan as it is; `codes` were written before: it is resumed.

    `caption` is the user's; the plan has one of its own, the planner's, unless `given.caption` fixes it too.
    """

    caption: str
    lyrics: str = ""
    given: Metadata = _KNOWN_NOTHING
    seed: int = 0
    sampling: Sampling = _SAMPLING
    codes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """One request for text: the user's words and codes, and whether the answer has lyrics after its metadata.

    Guidance leads away from `negative`; without one there is none. `given` stands in the answer as it is.
    """

    instruction: str
    user: str
    negative: str | None = None
    codes: tuple[int, ...] = ()
    lyrics: bool = False
    given: Metadata = _KNOWN_NOTHING
    seed: int = 0
    sampling: Sampling = _SAMPLING


def metadata_of(song: Song) -> Question:
    """The metadata of a song whose caption and lyrics are known."""
    user, negative = (prompts.song_text(caption, song.lyrics) for caption in (song.caption, None))
    return Question(prompts.GENERATE, user, negative, given=song.given, seed=song.seed, sampling=song.sampling)


def write(
    wish: str,
    *,
    instrumental: bool = False,
    given: Metadata = _KNOWN_NOTHING,
    seed: int = 0,
    sampling: Sampling = _SAMPLING,
) -> Question:
    """Caption, metadata and lyrics from a wish in plain words."""
    user = f"{wish}\n\ninstrumental: {str(instrumental).lower()}"
    return Question(prompts.EXPAND, user, lyrics=not instrumental, given=given, seed=seed, sampling=sampling)


def put_in_order(
    caption: str, lyrics: str = "", *, given: Metadata = _KNOWN_NOTHING, seed: int = 0, sampling: Sampling = _SAMPLING
) -> Question:
    """A caption and lyrics (empty: instrumental) in the form that the models were trained on, with metadata."""
    user = prompts.song_text(caption, lyrics).rstrip()
    return Question(prompts.FORMAT, user, lyrics=bool(lyrics.strip()), given=given, seed=seed, sampling=sampling)


def describe(
    codes: Sequence[int], *, given: Metadata = _KNOWN_NOTHING, seed: int = 0, sampling: Sampling = DESCRIBING
) -> Question:
    """Caption, metadata and lyrics of a song from its audio codes, which say how long it is.

    Raises:
        InvalidSpec: there are none.
    """
    if not codes:
        raise InvalidSpec("audio_codes: there are none to describe", field="audio_codes")
    given = given.or_else(Metadata(duration_s=len(codes) / CODES_PER_S))
    return Question(prompts.UNDERSTAND, "", codes=tuple(codes), lyrics=True, given=given, seed=seed, sampling=sampling)
