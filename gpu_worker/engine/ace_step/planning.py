"""The planner beside the pipeline: what it writes for a song before it is generated, and text alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from gpu_worker.engine.ace_step.sampling import has_codes
from gpu_worker.engine.interface import BatchProgress, SongRequest
from gpu_worker.planner import questions
from gpu_worker.planner.decoding import Observe, Sampling
from gpu_worker.planner.planner import Answer, Planner
from gpu_worker.planner.prompts import Metadata, codes_text
from serinette.job import Stage
from serinette.spec import INSTRUMENTAL, LEFT_TO_TEXT, GenerationSpec, Planned, Task

# Tokens between two reports that differ: each would be a message to the slot.
_REPORTED_TOKENS = 25
# Tempo and key as people write them into a prompt. `A minor` at its beginning may be no key: "A minor-key ballad".
# Beside them may stand a Japanese letter, which is one of a word to `\b`.
_BPM = re.compile(r"(?<!\d)(?P<before>\d{2,3}) ?bpm(?![a-z])|(?<![a-z])bpm:? ?(?P<after>\d{2,3})(?!\d)", re.IGNORECASE)
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?!^A minor)(?P<note>[A-G])(?P<sign>#|b|♯|♭)? ?(?P<mode>[Mm]ajor|[Mm]inor)(?![A-Za-z0-9])"
)
_KEY_JA = re.compile(r"(?P<sign>嬰|変)?(?P<note>[ハニホヘトイロ])(?P<mode>長|短)調")
_JA = dict(zip("ハニホヘトイロ嬰変長短", ("C", "D", "E", "F", "G", "A", "B", "#", "b", "major", "minor"), strict=True))


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request as it is generated, and what was written for it; None of a song that is not planned."""

    request: SongRequest
    plan: Planned | None = None
    audio_codes: str | None = None


class SongPlanner:
    """A planner for songs; `name` is shown to people."""

    def __init__(self, planner: Planner, name: str) -> None:
        self._planner = planner
        self.name = name
        self.codebook = planner.codebook

    def warnings(self, spec: GenerationSpec) -> tuple[str, ...]:
        """What it will not do of a spec."""
        way, warnings = _way(spec), []
        read, whole = len(self._planner.readable(spec.prompt, "")[0]), len(spec.prompt)
        if read < whole and (way or spec.thinking):
            warnings.append(f"prompt: planner {self.name} reads its first {read} of {whole} characters; shorten it")
        if way == "format" and _lyrics(spec) and not self._planner.writes_lyrics:
            warnings.append(f"lyrics: planner {self.name} writes none; they are kept as they were sent")
        if way == "write" and spec.lyrics.strip() != INSTRUMENTAL and not self._planner.writes_lyrics:
            warnings.append(f"lyrics: planner {self.name} writes none")
        return tuple(warnings)

    def plan(
        self, batch: Sequence[SongRequest], lengths_s: Sequence[float], progress: BatchProgress
    ) -> list[PlannedRequest]:
        """Each request of a batch with its plan, planned together. A song that was given up has none.

        Raises:
            Canceled: every song was given up.
            InvalidSpec: a text is longer than the planner can read.
        """
        own = self._planner.sampling
        songs = [
            _song(request, self._planner.readable(request.spec.prompt, _lyrics(request.spec)), length_s, own)
            for request, length_s in zip(batch, lengths_s, strict=True)
        ]
        asked = [
            self._question(request, song.given) if request.spec.rewrite else questions.metadata_of(song)
            for request, song in zip(batch, songs, strict=True)
        ]
        answers = self._planner.answer(asked, _observer(progress, range(len(batch))))
        known = {place: answer for place, answer in enumerate(answers) if answer}
        plans = {
            place: _text(batch[place].spec, answer) if batch[place].spec.rewrite else _metadata(answer)
            for place, answer in known.items()
        }
        coded = [place for place in plans if self.codebook and _takes_codes(batch[place].spec)]
        rest = [_continued(songs[place], known[place], plans[place], batch[place].spec) for place in coded]
        codes = dict(zip(coded, self._planner.codes(rest, _observer(progress, coded)), strict=True))
        return [
            _planned(request, plans[place], codes.get(place, [])) if place in plans else PlannedRequest(request)
            for place, request in enumerate(batch)
        ]

    def write(
        self, batch: Sequence[SongRequest], progress: BatchProgress, codes_of: Callable[[SongRequest], tuple[int, ...]]
    ) -> Iterator[tuple[int, Planned]]:
        """The text of each request that is not given up, by its place; `codes_of` a request to describe its source.
        Raises as `plan`.
        """
        progress.report(Stage.PLANNING)
        asked = [
            questions.describe(
                codes_of(request),
                given=_given_of_text(request.spec),
                seed=request.lm_seed,
                sampling=_sampling(request.spec, questions.DESCRIBING),
            )
            if request.spec.task is Task.DESCRIBE
            else self._question(request, _given_of_text(request.spec))
            for request in batch
        ]
        answers = self._planner.answer(asked, _observer(progress, range(len(batch))))
        for place, (request, answer) in enumerate(zip(batch, answers, strict=True)):
            if answer:
                yield place, _text(request.spec, answer)

    def _question(self, request: SongRequest, given: Metadata) -> questions.Question:
        spec = request.spec
        prompt, words = self._planner.readable(spec.prompt, _lyrics(spec))
        if _way(spec) == "write":
            asked = questions.write(prompt, instrumental=spec.lyrics.strip() == INSTRUMENTAL)
        else:
            asked = questions.put_in_order(prompt, words)
        lyrics = asked.lyrics and self._planner.writes_lyrics
        return replace(
            asked, lyrics=lyrics, given=given, seed=request.lm_seed, sampling=_sampling(spec, self._planner.sampling)
        )


def _way(spec: GenerationSpec) -> str | None:
    return spec.task if spec.task.text_alone else spec.rewrite


def _given_of_text(spec: GenerationSpec) -> Metadata:
    given = {name: getattr(spec, name) for name in LEFT_TO_TEXT & spec.model_fields_set}
    if spec.task is Task.DESCRIBE:  # its prompt is of no use, and the source has a length
        return replace(_given(spec.model_copy(update={"prompt": ""})), vocal_language=given.get("vocal_language"))
    return replace(_given(spec), **given)


def _song(request: SongRequest, texts: tuple[str, str], length_s: float, own: Sampling) -> questions.Song:
    spec, (caption, lyrics) = request.spec, texts
    language = spec.vocal_language if "vocal_language" in spec.model_fields_set or not spec.rewrite else None
    if not (_lyrics(spec) or spec.rewrite == "write"):
        language = None
    given = replace(_given(spec), duration_s=length_s, vocal_language=language)
    return questions.Song(caption, lyrics, given, request.lm_seed, _sampling(spec, own))


def _given(spec: GenerationSpec) -> Metadata:
    given = Metadata(bpm=spec.bpm, key_scale=spec.key_scale, time_signature=spec.time_signature)
    return given.or_else(stated(spec.prompt))


def stated(prompt: str) -> Metadata:
    """Tempo and key that a prompt states: a planner that puts a caption in its place must not change them."""
    prompt = unicodedata.normalize("NFKC", prompt)  # full-width letters and digits
    tempo, key, key_ja = _BPM.search(prompt), _KEY.search(prompt), _KEY_JA.search(prompt)
    bpm = int(tempo["before"] or tempo["after"]) if tempo else 0
    key_scale = f"{key['note']}{key['sign'] or ''} {key['mode'].lower()}" if key else None
    if key_ja:
        key_scale = key_scale or f"{_JA[key_ja['note']]}{_JA.get(key_ja['sign'], '')} {_JA[key_ja['mode']]}"
    return Metadata(bpm=bpm if 30 <= bpm <= 300 else None, key_scale=key_scale)


def _lyrics(spec: GenerationSpec) -> str:
    return _sung(spec.lyrics)


def _sung(lyrics: str | None) -> str:
    return "" if lyrics is None or lyrics.strip() == INSTRUMENTAL else lyrics


def _sampling(spec: GenerationSpec, own: Sampling) -> Sampling:
    asked = {"temperature": spec.lm_temperature, "top_p": spec.lm_top_p, "cfg_scale": spec.lm_cfg_scale}
    return replace(own, **{name: value for name, value in asked.items() if value is not None})


def _takes_codes(spec: GenerationSpec) -> bool:
    return spec.thinking and spec.task is Task.TEXT2MUSIC and not has_codes(spec)


def _metadata(answer: Answer) -> Planned:
    written = answer.metadata
    return Planned(
        caption=written.caption,
        bpm=written.bpm,
        key_scale=written.key_scale,
        time_signature=written.time_signature,
    )


def _continued(song: questions.Song, answer: Answer, plan: Planned, spec: GenerationSpec) -> questions.Song:
    """The song with its plan, for its codes: from the prompt that the user gave, or what was written in its place."""
    song = replace(song, given=answer.metadata)
    if not spec.rewrite:
        return song
    return replace(song, caption=plan.caption or song.caption, lyrics=_sung(plan.lyrics))


def _planned(request: SongRequest, plan: Planned, codes: Sequence[int]) -> PlannedRequest:
    plan = plan.model_copy(update={"duration_s": None, "codes": len(codes)})
    audio_codes = codes_text(codes) or None
    return PlannedRequest(replace(request, spec=plan.applied_to(request.spec, audio_codes)), plan, audio_codes)


def _text(spec: GenerationSpec, answer: Answer) -> Planned:
    lyrics = answer.lyrics
    if lyrics is None:
        silent = _way(spec) == "write" or not _lyrics(spec)
        lyrics = spec.lyrics if not silent else INSTRUMENTAL if spec.lyrics.strip() else None
    written = answer.metadata
    return Planned(
        caption=written.caption,
        lyrics=lyrics,
        bpm=written.bpm,
        duration_s=written.duration_s,
        key_scale=written.key_scale,
        time_signature=written.time_signature,
        vocal_language=written.vocal_language,
    )


def _observer(progress: BatchProgress, places: Sequence[int]) -> Observe:
    """Reports tokens, and answers which of the songs at `places` of the batch were given up."""

    def observe(done: int, total: int | None) -> frozenset[int]:
        progress.report(Stage.PLANNING, done - done % _REPORTED_TOKENS, total)
        return frozenset(at for at, place in enumerate(places) if place in progress.given_up)

    return observe
