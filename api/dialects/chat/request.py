"""A chat completion as its clients send it: types, and the song that its messages ask for. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    model_validator,
)

from api.dialects.musical_fields import FileFormat, ShortText, SongFields, says_something
from serinette.spec import TextFloat, TextInt

_MAX_PARTS: Final = 16
_SHOWN: Final = 40
_FREE_TEXT: Final = frozenset({"lyrics", "vocal_language"})
_READ: Final = frozenset({"text", "input_audio"})
_TAG = re.compile(r"<(/?)(prompt|lyrics)>", re.IGNORECASE)
_SECTION = re.compile(r"^[ \t]*\[[^\]\n]{1,40}\]", re.MULTILINE)
# As many short lines are words to sing, not a description.
_FEWEST_LINES, _LONGEST_LINE = 4, 60
_CONFIG: Final = ("duration", "bpm", "vocal_language", "instrumental", "format", "key_scale", "time_signature")


class InputAudio(BaseModel):
    """Audio inside a message."""

    data: str = Field(description="The file in base64.", repr=False)
    format: ShortText | None = Field(None, description="Not needed: the file says.")


class Part(BaseModel):
    """A part of a message: text, or audio to work on; one of another `type` is not read, and reported."""

    type: ShortText
    text: str = ""
    input_audio: InputAudio | None = None

    @model_validator(mode="before")
    @classmethod
    def _unread(cls, given: object) -> object:
        other = isinstance(given, dict) and isinstance(given.get("type"), str) and given["type"] not in _READ
        return {"type": given["type"]} if isinstance(given, dict) and other else given


def _parts(content: object) -> object:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [] if content is None else content


_Content = BeforeValidator(_parts, json_schema_input_type=str | list[Part] | None)


class Message(BaseModel):
    """One message. The last one of the user asks for the song; the others are not read."""

    role: ShortText
    content: Annotated[list[Part], Field(max_length=_MAX_PARTS), _Content] = Field(default_factory=list)


class ChatRequest(SongFields):
    """The body. `audio_config` holds `duration`, `bpm`, `vocal_language`, `instrumental`, `format`, `key_scale` and
    `time_signature`, which may also stand beside it.
    """

    model_config = ConfigDict(extra="allow")

    messages: list[Message] = Field(
        min_length=1,
        description="The last one of the user says what to generate: `<prompt>` and `<lyrics>` tags, lyrics, or a "
        "wish. Its `input_audio` is the source (of text2music the timbre), a second one the timbre.",
    )
    model: ShortText | None = Field(None, description="An id of GET /v1/models; for another one the default generates.")
    stream: bool = Field(False, description="Server-Sent Events: signs of life, then the song.")
    lyrics: str = Field("", description="Lyrics; the message is then the prompt.")
    batch_size: TextInt = Field(1, description="Songs, 1 to 8.")
    sample_mode: bool = Field(False, description="The message is a wish, also if it looks like lyrics.")

    duration: TextFloat | None = Field(None, description="Seconds, 1 to 600; 60 if left out.")
    format: FileFormat = "mp3"

    temperature: TextFloat | None = Field(None, description="Of the planner, 0 to 2.")
    top_p: TextFloat | None = Field(None, description="Of the planner, 0.01 to 1.")
    thinking: bool | None = Field(None, description="The planner thinks first; where there is none, with a warning.")
    use_format: bool | None = Field(None, description="The planner puts prompt and lyrics in order first; likewise.")
    use_cot_caption: Any = Field(None, description="Of a planned song the planner's caption is used.")
    use_cot_language: Any = Field(None, description="The language is the one that is sent.")
    modalities: Any = Field(None, description="Audio comes whatever is asked for.")

    _unread_messages: bool = False

    @model_validator(mode="wrap")
    @classmethod
    def _flat(cls, given: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(given, dict):
            return validate(given)
        config = {} if given.get("audio_config") is None else given["audio_config"]
        if not isinstance(config, dict):
            raise ValueError("audio_config: must be an object")
        both = {**given, **{name: config[name] for name in _CONFIG if config.get(name) is not None}}
        sent = {
            name: value
            for name, value in both.items()
            if name != "audio_config" and says_something(value, free_text=name in _FREE_TEXT)
        }
        messages = sent.get("messages")
        if not isinstance(messages, list) or not messages:
            return validate(sent)
        asking = next((each for each in reversed(messages) if _is_of_the_user(each)), {"role": "user"})
        request = validate(sent | {"messages": [asking]})  # a history has whatever other servers answered
        request._unread_messages = any(
            isinstance(each, dict) and each.get("content") for each in messages if each is not asking
        )
        return request

    @property
    def unread_messages(self) -> bool:
        """Whether others than the last one of the user said something."""
        return self._unread_messages

    @property
    def unread_parts(self) -> list[str]:
        """Kinds of the message's parts that are neither text nor audio."""
        return sorted({part.type[:_SHOWN] for part in self.messages[0].content if part.type not in _READ})

    @property
    def text(self) -> str:
        """What the message says."""
        return "\n".join(part.text for part in self.messages[0].content if part.type == "text")

    @property
    def audio(self) -> list[str]:
        """Files that came along, in base64."""
        return [part.input_audio.data for part in self.messages[0].content if part.input_audio]


def _is_of_the_user(message: object) -> bool:
    return isinstance(message, dict) and message.get("role") == "user"


def words_of(text: str, lyrics: str, *, wish: bool) -> tuple[str, str, bool]:
    """Prompt, lyrics, and whether the text was a wish, of which a planner writes both."""
    tagged, _ = _tagged(text)
    if tagged:
        return tagged.get("prompt", ""), tagged.get("lyrics", "") or lyrics, False
    if lyrics.strip():
        return text.strip(), lyrics, False
    if not wish and _are_lyrics(text):
        return "", text.strip(), False
    return text.strip(), "", True


def outside_tags(text: str) -> str:
    """What a text with tags says beside them."""
    tagged, outside = _tagged(text)
    return outside if tagged else ""


def _tagged(text: str) -> tuple[dict[str, str], str]:
    """What stands between tags, and outside, in one pass over a stranger's text."""
    begun: dict[str, re.Match[str]] = {}
    found: dict[str, str] = {}
    outside, end = "", 0
    for tag in _TAG.finditer(text):
        name = tag[2].lower()
        if not tag[1]:
            begun.setdefault(name, tag)
        elif name in begun and name not in found:
            found[name] = text[begun[name].end() : tag.start()].strip()
            outside += text[end : begun[name].start()]
            end = tag.end()
    return found, (outside + text[end:]).strip()


def _are_lyrics(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    short = len(lines) >= _FEWEST_LINES and all(len(line) <= _LONGEST_LINE for line in lines)
    return short or _SECTION.search(text) is not None
