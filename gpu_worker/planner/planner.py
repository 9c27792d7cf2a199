"""The planner: writes a song's metadata, then its 5 Hz audio codes, which the diffusion model follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from gpu_worker.planner import prompts
from gpu_worker.planner.decoding import Head, Observe, Row, Sampling, decode, output_weight
from gpu_worker.planner.grammar import Grammars, Walk
from gpu_worker.planner.loading import METADATA_ALONE, TEMPERATURE, TRAINED, load_parts
from gpu_worker.planner.prompts import Metadata
from gpu_worker.planner.questions import Question, Song, metadata_of
from gpu_worker.planner.vocabulary import Vocabulary
from serinette.errors import ConfigurationError, InvalidSpec, Unsupported
from serinette.spec import CODES_PER_S

LONGEST_S = 600


@dataclass(frozen=True, slots=True)
class Plan:
    """What was written for a song. A song that was given up has fewer codes than asked for, or no metadata."""

    metadata: Metadata | None
    codes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the planner wrote; `lyrics` None where none were asked for."""

    metadata: Metadata
    lyrics: str | None


def code_count(duration_s: float) -> int:
    """Codes that fill a song, the last of them perhaps in part.

    Raises:
        InvalidSpec: it is longer or shorter than a song may be.
    """
    if not 1 <= duration_s <= LONGEST_S:
        raise InvalidSpec(f"duration_s: must be 1 to {LONGEST_S}, not {duration_s}", field="duration_s")
    return math.ceil(round(duration_s * CODES_PER_S, 6))


class Planner:
    """One loaded planner. Called from one thread; what is asked in one call is written together.

    All that writes raises InvalidSpec for texts or lengths that are more than the model can read, and InvalidOutput
    when its logits are not finite.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary, grammars: Grammars | None = None) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._trained: tuple[int, int] | None = getattr(model.config, TRAINED, None)
        bound = {"most_caption_tokens": self._trained[0]} if self._trained else {}
        self._grammars = grammars or Grammars(vocabulary, **bound)
        self._text_head = Head(model)
        self._code_head = Head(model, vocabulary.code_ids) if vocabulary.code_ids else None

    @classmethod
    def load(cls, directory: Path, *, device: torch.device, dtype: torch.dtype, codebook: int | None = None) -> Planner:
        """Load the planner in `directory`; of its codes those of the diffusion model's `codebook` are used.

        Raises:
            ConfigurationError: what is there is no planner, or not whole.
        """
        model, tokenizer = load_parts(directory, dtype)
        try:
            return cls.of_parts(model, tokenizer, device=device, codebook=codebook)
        except ConfigurationError as error:
            raise ConfigurationError(f"planner {directory}: {error.message}") from error

    @classmethod
    def of_parts(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: torch.device,
        codebook: int | None = None,
    ) -> Planner:
        """A planner of a model and its tokenizer, on a device. Raises ConfigurationError where the two do not fit."""
        vocabulary = Vocabulary(tokenizer, output_weight(model).shape[0], codebook)
        model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps torch's own
        return cls(model, vocabulary.on(device))

    @property
    def sampling(self) -> Sampling:
        """What it is sampled with where nothing else is asked for."""
        own = Sampling()
        return replace(own, temperature=getattr(self._model.config, TEMPERATURE, own.temperature))

    @property
    def writes_lyrics(self) -> bool:
        """Whether it was trained to."""
        return not getattr(self._model.config, METADATA_ALONE, False)

    def readable(self, caption: str, lyrics: str) -> tuple[str, str]:
        """As much of the beginnings of a song's texts as it was trained to read."""
        if self._trained is None:
            return caption, lyrics
        caption_tokens, lyrics_tokens = self._trained
        return self._vocabulary.cut(caption, caption_tokens), self._vocabulary.cut(lyrics, lyrics_tokens)

    @property
    def codebook(self) -> int:
        """How many audio codes it knows; 0 for a planner that writes metadata alone."""
        return len(self._vocabulary.code_ids)

    def plan(self, songs: Sequence[Song], observe: Observe) -> list[Plan]:
        """Metadata and, where the planner knows codes, the codes of each song."""
        written = self.metadata(songs, observe)
        plans = [Plan(metadata, song.codes) for metadata, song in zip(written, songs, strict=True)]
        kept = [place for place, metadata in enumerate(written) if metadata]
        if not self.codebook or not kept:
            return plans

        def among_kept(done: int, total: int | None) -> frozenset[int]:
            dropped = observe(done, total)
            return frozenset(at for at, place in enumerate(kept) if place in dropped)

        asked = [replace(songs[place], given=metadata) for place in kept if (metadata := written[place])]
        for place, codes in zip(kept, self.codes(asked, among_kept), strict=True):
            plans[place] = Plan(written[place], tuple(codes))
        return plans

    def metadata(self, songs: Sequence[Song], observe: Observe) -> list[Metadata | None]:
        """Each song's metadata, what was given as it was given; None for those that were given up."""
        answers = self.answer([metadata_of(song) for song in songs], observe)
        return [None if answer is None else answer.metadata for answer in answers]

    def answer(self, questions: Sequence[Question], observe: Observe) -> list[Answer | None]:
        """Answer each question in the grammar of metadata and lyrics; None for those that were given up.

        Raises:
            Unsupported: a question has audio codes, and the planner knows none.
            InvalidSpec: the codes are not the planner's.
        """
        walks = [self._grammars.walk(asked.given.trained(), lyrics=asked.lyrics) for asked in questions]
        rows = [self._text_row(*both) for both in zip(questions, walks, strict=True)]
        decode(self._model, self._text_head, rows, observe, None)
        return [_answer(asked, walk) if walk.done else None for asked, walk in zip(questions, walks, strict=True)]

    def codes(self, songs: Sequence[Song], observe: Observe) -> list[list[int]]:
        """The codes of each song whose `given` metadata is complete: as many as fill its `duration_s`.

        Raises:
            Unsupported: this planner writes metadata alone.
            InvalidSpec: a song has no duration, or the codes to go on from are not its own.
        """
        paths = [self._code_path(song) for song in songs]
        rows = [self._code_row(*both) for both in zip(songs, paths, strict=True)]
        if self._code_head and rows:
            decode(self._model, self._code_head, rows, observe, max(path.count for path in paths))
        return [path.codes for path in paths]

    def _check(self, codes: Sequence[int]) -> None:
        if not self.codebook:
            raise Unsupported("this planner writes metadata alone; use a planner that knows audio codes")
        if strange := [code for code in codes if not 0 <= code < self.codebook]:
            raise InvalidSpec(
                f"audio_codes: {strange[0]} is not one of this planner's codes, 0 to {self.codebook - 1}",
                field="audio_codes",
            )

    def _text_row(self, asked: Question, walk: Walk) -> Row:
        if asked.codes:
            self._check(asked.codes)
        forced = walk.forced()
        user, negative = (
            self._vocabulary.render(
                prompts.request(asked.instruction, self._vocabulary.plain(said) + prompts.codes_text(asked.codes)),
                opened=True,
            )
            for said in (asked.user, asked.negative or "")
        )
        return Row(
            user + forced,
            negative + forced,
            asked.seed,
            replace(asked.sampling, cfg_scale=1.0) if asked.negative is None else asked.sampling,
            walk,
            walk.most_tokens,
            len(forced),
        )

    def _code_path(self, song: Song) -> _CodePath:
        if song.given.duration_s is None:
            raise InvalidSpec("duration_s: codes need a length; write the metadata first", field="duration_s")
        path = _CodePath(code_count(song.given.duration_s), list(song.codes))
        if len(path.codes) > path.count:
            raise InvalidSpec(
                f"audio_codes: {len(path.codes)} are more than a song of {song.given.duration_s} s has, {path.count}",
                field="audio_codes",
            )
        self._check(path.codes)
        return path

    def _code_row(self, song: Song, path: _CodePath) -> Row:
        plain = self._vocabulary.plain
        user = plain(prompts.song_text(song.caption, song.lyrics))
        planned, unplanned = (
            self._vocabulary.render(
                prompts.request(prompts.GENERATE, user, prompts.thought(known, plain)), opened=False
            )
            for known in (song.given, Metadata())
        )
        written = [self._vocabulary.code_ids[code] for code in path.codes]
        return Row(planned + written, unplanned + written, song.seed, song.sampling, path, path.count, len(path.codes))


@dataclass(slots=True)
class _CodePath:
    count: int
    codes: list[int]

    @property
    def done(self) -> bool:
        return len(self.codes) >= self.count

    def allowed(self) -> None:
        return None

    def advance(self, place: int) -> None:
        self.codes.append(place)


def _answer(asked: Question, walk: Walk) -> Answer:
    written = Metadata.of_trained(walk.values)
    return Answer(asked.given.or_else(written), str(walk.values["lyrics"]) if asked.lyrics else None)
