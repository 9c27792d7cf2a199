"""What becomes of a chat completion's fields. Pure."""

from __future__ import annotations

from typing import Final

from api.dialects import fields
from api.dialects import musical_fields as musical
from api.dialects.chat.request import ChatRequest, outside_tags, words_of
from api.dialects.fields import Conversion, Table, To, recorded, renamer, sentences
from serinette.errors import InvalidSpec
from serinette.spec import INSTRUMENTAL, Task

API: Final = "chat"
Converted = Conversion[ChatRequest]


def _words(_: object, asked: Converted) -> None:
    prompt, lyrics, wish = words_of(asked.request.text, asked.request.lyrics, wish=asked.request.sample_mode)
    if not (prompt or lyrics or asked.request.audio):
        raise InvalidSpec("messages: the last one of the user must say what to generate", field="messages")
    if asked.request.unread_messages:
        asked.adjust("only the last one of the user is read")
    if asked.request.unread_parts:
        asked.adjust(f"parts that are not read: {', '.join(asked.request.unread_parts)}")
    if outside_tags(asked.request.text):
        asked.adjust("text outside of the tags has no effect")
    if asked.request.instrumental and lyrics and lyrics != INSTRUMENTAL:
        asked.adjust("is true, so lyrics have no effect", field="instrumental")
    asked.fields |= {"prompt": prompt, "lyrics": INSTRUMENTAL if asked.request.instrumental else lyrics}
    if wish and prompt and asked.request.task_type is Task.TEXT2MUSIC:
        asked.fields |= {"rewrite": "write", "thinking": True}


def _formatted(wanted: bool, asked: Converted) -> str | None:
    return "format" if wanted and "rewrite" not in asked.fields else None


def _thinking(wanted: bool, _: Converted) -> bool | None:
    return wanted or None


def _model(name: str, asked: Converted) -> str | None:
    """`acestep/NAME`, as its own server spells it, is NAME."""
    return musical.model(name if name in asked.models else name.rpartition("/")[2], asked)


TABLE: Final[Table] = {
    "messages": To(convert=_words),
    "model": To("model", _model),
    "batch_size": To("variations"),
    "seed": To("seed", musical.seed),
    "task_type": To("task"),
    "guidance_scale": To("guidance_scale"),
    "repainting_start": To("repaint_start_s"),
    "repainting_end": To("repaint_end_s", musical.repaint_end),
    "audio_cover_strength": To("cover_strength"),
    "duration": To("duration_s", lambda seconds, _: seconds if seconds > 0 else None),
    "bpm": To("bpm", musical.bpm),
    "vocal_language": To("vocal_language", musical.language_of_song),
    "format": To("format", musical.audio_format),
    "key_scale": To("key_scale", musical.key_scale),
    "time_signature": To("time_signature", musical.time_signature),
    # Read with the messages.
    **dict.fromkeys(("lyrics", "sample_mode", "instrumental", "stream"), To()),
    "use_format": To("rewrite", _formatted),
    "thinking": To("thinking", _thinking),
    "temperature": To("lm_temperature", musical.lm_number),
    "top_p": To("lm_top_p", musical.lm_number),
    # They say what is so anyway.
    **dict.fromkeys(("use_cot_caption", "use_cot_language", "modalities"), To()),
}
_AUDIO: Final[Table] = {"messages": To("source_audio")}
theirs: Final = renamer({**TABLE, **_AUDIO})


def convert(request: ChatRequest, uploads: list[str], models: frozenset[str]) -> Converted:
    """What becomes of a request; `uploads` are the ids of the message's audio, in its order.

    Raises:
        InvalidSpec: it asks for nothing, or a field means nothing here.
    """
    conversion = fields.convert(TABLE, request, models=models)
    places = ["reference_audio"] if request.task_type is Task.TEXT2MUSIC else ["source_audio", "reference_audio"]
    conversion.fields |= dict(zip(places, uploads, strict=False))
    if len(uploads) > len(places):
        conversion.adjust(f"audio beyond the first {len(places)} has no effect", field="messages")
    return conversion


def record_of(conversion: Converted) -> dict[str, str]:
    """What travels with the job for the answers."""
    return recorded(API, sentences(conversion.adjusted, conversion.ignored))
