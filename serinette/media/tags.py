"""Tags that say how to make a song again: one JSON document in `comment`, which all five formats keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError

from serinette.errors import InvalidAudio, InvalidSpec
from serinette.media.decoding import opened
from serinette.spec import GenerationSpec


class SongTags(BaseModel):
    """What a song says of itself."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    spec: GenerationSpec
    seed: int
    model: str
    model_revision: str
    job_id: str


def song_tags(spec: GenerationSpec, seed: int, model: str, model_revision: str, job_id: str) -> dict[str, str]:
    """Tags for `encode`: the document, and the prompt as title for players. `seed` is this song's own."""
    document = {
        "serinette": 1,
        "spec": spec.to_wire(),
        "seed": seed,
        "model": model,
        "model_revision": model_revision,
        "job_id": job_id,
    }
    return {"title": spec.prompt, "comment": json.dumps(document)}


def read_song_tags(file: Path | BinaryIO) -> SongTags | None:
    """What `song_tags` wrote; None for a file that is not a song of ours.

    Raises:
        InvalidAudio: not an audio file.
    """
    with opened(file) as container:
        return parse_song_tags({**container.metadata, **container.streams.audio[0].metadata})


def parse_song_tags(tags: Mapping[str, str]) -> SongTags | None:
    """The document in a file's tags, however the container spelled their names."""
    comment = next((text for name, text in tags.items() if name.lower() == "comment"), "")
    try:
        document = json.loads(comment)
        return SongTags.model_validate({**document, "spec": GenerationSpec.from_wire(document["spec"])})
    except (ValueError, TypeError, KeyError, InvalidSpec, ValidationError, InvalidAudio):
        return None
