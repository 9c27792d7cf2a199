"""Names in this dialect: of fields, many for one and in several places of a body; of songs and uploads. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import TypeAdapter, ValidationError

from api.dialects.body import read_json
from api.dialects.musical_fields import says_something
from serinette.errors import InvalidSpec, NotFound
from serinette.job import Artifact
from serinette.spec import AudioFormat, AudioId

_BOOLEAN_WORDS: Final = frozenset({"1", "true", "yes", "y", "on", "0", "false", "no", "n", "off"})

# Where metadata may be nested, in the order in which a name counts; each an object, or its JSON as text.
_PARAM_OBJECT: Final = ("param_obj", "paramObj")
_METADATA: Final = ("metas", "meta", "metadata", "user_metadata", "userMetadata")
_CREDENTIALS: Final = frozenset({"ai_token", "aiToken"})

# `auto` is a language: the model's own choice.
_FREE_TEXT: Final = frozenset({"prompt", "lyrics", "instruction", "sample_query", "vocal_language"})

AUDIO_PATH: Final = "/v1/audio"
_AUDIO_ID: TypeAdapter[str] = TypeAdapter(AudioId)
# A song's token, where the official server names a path of its disk. It ends like a file's name, since clients take the
# format from there.
_TOKEN = re.compile(rf"([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})-([0-7])\.(?:{'|'.join(AudioFormat)})")


class Sent(NamedTuple):
    """What a body says, by the fields' own names; `unknown` names mean nothing, or hold no object where one goes."""

    values: Mapping[str, Any]
    unknown: tuple[str, ...]


def collect(body: Mapping[str, Any], known: Mapping[str, tuple[str, ...]]) -> Sent:
    """Find fields under any of their names: in the body, else in its param object, else in its metadata.

    `known` has each field's further names; camelCase is taken for every one.
    """
    places = (body, _nested(body, _PARAM_OBJECT), _nested(body, _METADATA))
    used = {*_PARAM_OBJECT, *_METADATA, *_CREDENTIALS}
    values: dict[str, Any] = {}
    for field, also in known.items():
        names = tuple(_spellings(field, *also))
        used.update(names)
        sent = (place.get(name) for place in places for name in names)
        candidates = [value for value in sent if says_something(value, free_text=field in _FREE_TEXT)]
        if candidates:
            values[field] = candidates[0]
    # `format` means `use_format` there, though many who send it mean the file's.
    if "use_format" not in values and _is_boolean(body.get("format")):
        values["use_format"] = body["format"]
        used.add("format")
    unread = [name for name in (*_PARAM_OBJECT, *_METADATA) if body.get(name) and _object(body[name]) is None]
    return Sent(values, tuple(sorted({name for place in places for name in place} - used)) + tuple(unread))


def _spellings(*names: str) -> Iterator[str]:
    for name in names:
        yield name
        first, *rest = name.split("_")
        if rest:
            yield first + "".join(map(str.capitalize, rest))


def _is_boolean(value: object) -> bool:
    return isinstance(value, bool) or str(value).strip().lower() in _BOOLEAN_WORDS


def _nested(body: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    return _object(next((body[name] for name in names if body.get(name)), {})) or {}


def _object(value: object) -> dict[str, Any] | None:
    try:
        found = read_json(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def song_url(job_id: str, song: Artifact) -> str:
    """Where a song is served, as `file` of a result."""
    return f"{AUDIO_PATH}?path={quote(f'{job_id}-{song.index}.{song.format}', safe='')}"


def song_named(path: str) -> tuple[str, int]:
    """Job and index of the song that a token, or the URL that holds it, names.

    Raises:
        NotFound: it is no token of ours. Nothing is ever looked for on a disk.
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
