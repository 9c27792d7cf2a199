"""Songs and uploads as this dialect names them: a token where its own server tells a path of its disk. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import TypeAdapter, ValidationError

from serinette.errors import InvalidSpec, NotFound
from serinette.job import Artifact
from serinette.spec import AudioFormat, AudioId

AUDIO_PATH: Final = "/v1/audio"
_AUDIO_ID: TypeAdapter[str] = TypeAdapter(AudioId)
# Ends like a file's name, since clients take the format from there.
_TOKEN = re.compile(rf"([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})-([0-7])\.(?:{'|'.join(AudioFormat)})")


def song_url(job_id: str, song: Artifact) -> str:
    """Where a song is to be had, as `file` of a result."""
    return f"{AUDIO_PATH}?path={quote(f'{job_id}-{song.index}.{song.format}', safe='')}"


def song_named(path: str) -> tuple[str, int]:
    """Job and index of the song that a token, or the URL that holds it, names.

    Raises:
        NotFound: it is none of ours. Nothing is ever looked for on a disk.
    """
    if match := _TOKEN.fullmatch(_unwrapped(path)):
        return match[1], int(match[2])
    raise NotFound("Audio file not found: path must be the token that is `file` in a result")


def audio_id(field: str, value: str) -> str:
    """The song or upload that a `*_path` names.

    Raises:
        InvalidSpec: it is a path or URL of elsewhere.
    """
    if match := _TOKEN.fullmatch(_unwrapped(value)):
        return f"{match[1]}/{match[2]}"
    try:
        return _AUDIO_ID.validate_python(value)
    except ValidationError as error:
        raise InvalidSpec(
            f"{field}: must be a song's URL as in a result, or an upload's id, never a path; send the file itself "
            f"as {field.removesuffix('_path')} of a form (multipart/form-data), or to POST /v1/uploads",
            field=field,
        ) from error


def _unwrapped(path: str) -> str:
    parts = urlsplit(path) if "?" in path else None
    if parts is None or not parts.path.endswith(AUDIO_PATH):
        return path
    return parse_qs(parts.query).get("path", [""])[0]
