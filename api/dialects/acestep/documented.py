"""The dialect in the OpenAPI document: bodies that FastAPI cannot see, and examples of answers."""

from __future__ import annotations

from typing import Any, Final

from api.dialects.acestep.answers import wrapped
from api.dialects.acestep.request import ReleaseTask
from api.dialects.acestep.samples import CUSTOM
from api.dialects.dialect import example
from api.problems import Responses

TAG: Final = "ACE-Step 1.5 dialect"
TASK_ID: Final = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
# What examples have in place of the time.
TIMESTAMP: Final = {"timestamp": 1_767_323_045_000}


def answers(data: object, more: Responses | None = None) -> Responses:
    """An example of the answer in its envelope, and further answers."""
    return example(wrapped(data) | TIMESTAMP) | (more or {})


NO_ANALYSIS: Final[Responses] = {501: {"description": "Codes alone are not taken from audio here."}}

_SONG: Final = {"schema": {"type": "string", "format": "binary"}}
SONG: Final[Responses] = {
    200: {"content": {"audio/mpeg": _SONG, "audio/wav": _SONG, "audio/flac": _SONG}, "description": "The song."},
    206: {"description": "The bytes asked for by `Range`."},
    404: {"description": "No song has this token."},
    410: {"description": "Its file was erased."},
}

_FILE: Final = {"type": "string", "format": "binary"}
_TASK: Final = ReleaseTask.model_json_schema(ref_template="#/components/schemas/{model}")


def _body(schema: dict[str, Any], example: dict[str, Any], files: tuple[str, ...] = ()) -> dict[str, Any]:
    form = schema | {"properties": schema["properties"] | dict.fromkeys(files, _FILE)}
    kinds = {"application/json": schema, "application/x-www-form-urlencoded": schema}
    content: dict[str, Any] = {kind: {"schema": each, "example": example} for kind, each in kinds.items()}
    if files:
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


_TEXT: Final = {"type": "string"}
RELEASE_BODY: Final = _body(
    {name: part for name, part in _TASK.items() if name != "$defs"},
    {"prompt": "upbeat pop song", "lyrics": "Hello world", "audio_duration": 15, "batch_size": 1},
    ("src_audio", "ctx_audio", "reference_audio", "ref_audio"),
)
QUERY_BODY: Final = _body(
    _object(task_id_list={"anyOf": [{"type": "array", "items": _TEXT}, _TEXT], "description": "256 at most."}),
    {"task_id_list": [TASK_ID]},
)
SAMPLE_BODY: Final = _body(_object(sample_type=_TEXT), {"sample_type": "simple_mode"})
WORDS_BODY: Final = _body(_object(prompt=_TEXT, lyrics=_TEXT, query=_TEXT), {"prompt": "pop rock"})
SAMPLE: Final = CUSTOM[0].documented()
WRITTEN: Final = SAMPLE | {"instrumental": False, "degraded": False, "warnings": []}
