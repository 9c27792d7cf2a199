"""Tags with which a song can be generated again: one JSON document in `comment`, which all five formats support."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

from serinette.errors import HandBack, InvalidSpec, Unsupported
from serinette.media.decoding import opened
from serinette.spec import GenerationSpec, Planned, RecordModel

_MARK = "serinette"
# What clients write in their own words.
_TEXTS = frozenset({"prompt", "lyrics"})


class SongTags(RecordModel):
    """Parsed tags of a song. `seed` is this song's own; the spec's seed is that of the job's first. `texts`: whether
    prompt and lyrics are in the spec, or were kept out of the file. `audio_codes` are those of the `plan`.
    """

    spec: GenerationSpec
    seed: int
    model: str
    model_revision: str
    job_id: str
    texts: bool = True
    plan: Planned | None = None
    audio_codes: str | None = None


def song_tags(  # noqa: PLR0913  # all that the document holds
    spec: GenerationSpec,
    seed: int,
    model: str,
    model_revision: str,
    job_id: str,
    *,
    plan: Planned | None = None,
    audio_codes: str | None = None,
    texts: bool = True,
) -> dict[str, str]:
    """Tags for `encode`: the document, and the prompt as title; without `texts` neither prompt nor lyrics, and of the
    plan no caption.
    """
    wire = {name: value for name, value in spec.to_wire().items() if texts or name not in _TEXTS}
    planned = plan.model_dump(exclude_none=True, exclude=None if texts else {"caption"}) if plan else None
    document = {
        _MARK: wire,
        "seed": seed,
        "model": model,
        "model_revision": model_revision,
        "job_id": job_id,
        **({"plan": planned} if planned else {}),
        **({"audio_codes": audio_codes} if audio_codes else {}),
        **({} if texts else {"texts": False}),
    }
    # WAV's tags have no character set, so the document is ASCII.
    comment = {"comment": json.dumps(document)}
    return {"title": " ".join(spec.prompt.split()), **comment} if texts else comment


def read_song_tags(file: Path | BinaryIO) -> SongTags | None:
    """Tags that `song_tags` wrote; None for a file without them.

    Raises:
        InvalidAudio: not an audio file.
        Unsupported: a newer Serinette wrote it.
    """
    with opened(file) as container:
        # Ogg has its tags in the stream, the others in the container.
        tags = {**container.metadata, **container.streams.audio[0].metadata}
    comment = next((text for name, text in tags.items() if name.lower() == "comment"), "")
    try:
        document = json.loads(comment)
        return SongTags.model_validate({**document, "spec": GenerationSpec.from_wire(document[_MARK])})
    except HandBack as newer:
        raise Unsupported(f"{newer.message.partition(':')[0]}; read it with a newer Serinette") from newer
    except (ValueError, TypeError, KeyError, AttributeError, InvalidSpec):
        return None
