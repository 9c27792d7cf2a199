"""What an adapter is trained on: every song below a directory, and the words that go with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gpu_worker.wire import Samples
from serinette.errors import ConfigurationError, InvalidAudio
from serinette.job import Record
from serinette.media import decode
from serinette.spec import GenerationSpec

# Less is not one token of the transformer, whose latents come 25 a second, two to a token.
_SHORTEST_S, _LONGEST_S = 0.1, 600.0
# Beside songs: their captions, and what a job or an upload left in the store.
_WORDS = frozenset({".txt", ".json"})


@dataclass(frozen=True, slots=True)
class Song:
    """`samples` are [channels, frames] as the checkpoint hears them; `spec` is what would be asked for to sing it."""

    name: str
    spec: GenerationSpec
    samples: Samples


def songs_in(directory: Path, sample_rate: int, channels: int, caption: str | None) -> list[Song]:
    """Every song below `directory`. Its words are, in this order: NAME.txt, the spec in job.json beside it, `caption`.

    Raises:
        ConfigurationError: there is no song, or one that is no audio, too short or long, or has no words.
    """
    found = list(_songs(directory, sample_rate, channels, caption))
    if not found:
        raise ConfigurationError(f"{directory}: holds no song; give some as the job's inputs")
    return found


def _songs(directory: Path, sample_rate: int, channels: int, caption: str | None) -> Iterator[Song]:
    for path in sorted(directory.rglob("*")):
        if not path.is_file() or path.suffix in _WORDS or path.name.startswith("."):
            continue
        name = path.relative_to(directory).as_posix()
        try:
            samples = decode(path, sample_rate, channels, _LONGEST_S)
        except InvalidAudio as error:
            raise ConfigurationError(f"{name}: {error.message}") from error
        if samples.shape[1] < _SHORTEST_S * sample_rate:
            raise ConfigurationError(f"{name}: is shorter than {_SHORTEST_S:g} s, of which nothing can be learned")
        yield Song(name, _words_of(path, name, caption), samples)


def _words_of(path: Path, name: str, caption: str | None) -> GenerationSpec:
    text, job = path.with_suffix(".txt"), path.with_name("job.json")
    try:
        if text.is_file():
            return GenerationSpec(prompt=text.read_text("utf-8").strip())
        if job.is_file():
            return Record.model_validate_json(job.read_bytes()).spec
        if caption is not None:
            return GenerationSpec(prompt=caption)
    except ValueError as error:  # pydantic's, and text that is no UTF-8
        told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigurationError(f"{name}: its words cannot be read: {told}") from error
    raise ConfigurationError(
        f"{name}: has no words; put them into {path.with_suffix('.txt').name} beside it, give the song with its job's "
        "prefix, or say --caption for all that have none"
    )
