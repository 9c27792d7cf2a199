"""A planner's tokens, as its tokenizer has them: audio codes by name, and what each token spells in bytes."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gpu_worker.planner.prompts import Message
from serinette.errors import ConfigurationError

_CODE = re.compile(r"<\|audio_code_(\d+)\|>")
# Line breaks other than \n, tabs and control characters have no place in a caption or in lyrics.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
# GPT-2's byte-level alphabet: bytes that print stand for themselves, the others follow from U+0100 on.
_PRINTING = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_BYTE = {chr(byte): byte for byte in _PRINTING} | {
    chr(0x100 + place): byte for place, byte in enumerate(byte for byte in range(0x100) if byte not in _PRINTING)
}


class Vocabulary:
    """Tokens of one planner. Masks are bool [width], the width being that of the model's logits.

    A caption begins with `caption_start`, after mere white space goes on with `caption_blank` and then with `caption`;
    `line_ends` are those tokens of `caption` that end its line, `caption_visible` those that show at once. `lyrics` are
    all text, and the end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, width: int, codebook: int | None = None) -> None:
        """Raises ConfigurationError when the tokenizer is not one of a planner's kind."""
        self._tokenizer = tokenizer
        self.width = width
        added = tokenizer.get_added_vocab()
        if len(tokenizer) > width:
            raise ConfigurationError(
                f"its tokenizer has {len(tokenizer)} tokens and the model only {width}: the two are not of one planner"
            )
        if tokenizer.eos_token_id is None or not tokenizer.chat_template:
            raise ConfigurationError("its tokenizer has no end token or no chat template; fetch the planner whole")
        self.end = int(tokenizer.eos_token_id)
        self.code_ids = _code_ids(added)[:codebook]
        markers = sorted((token for token in added if not _CODE.fullmatch(token)), key=len, reverse=True)
        self._markers = re.compile("|".join([_CODE.pattern, *map(re.escape, markers)]))
        self._bytes = _spelled(tokenizer, added)
        self._continuing = [token for token, spelled in self._bytes.items() if spelled and spelled[0] & 0xC0 == 0x80]
        self._completions: dict[tuple[bytes, bool], list[int]] = {}
        self._sort()

    def spelled(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a marker."""
        return self._bytes.get(token, b"")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which markers are markers."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def render(self, messages: Sequence[Message], *, opened: bool) -> list[int]:
        """Token ids of turns in the tokenizer's own chat format; `opened` begins the assistant's turn."""
        text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opened)
        return self.encode(str(text).removesuffix("\n") + "\n")

    def plain(self, text: str) -> str:
        """A user's text with its markers broken, so that it cannot end its turn or bring codes of its own."""
        return self._markers.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def cut(self, text: str, most_tokens: int) -> str:
        """The beginning of a text, in whole characters, of at most so many tokens."""
        spans = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(spans) <= most_tokens else text[: spans[most_tokens][0]]

    def on(self, device: torch.device) -> Vocabulary:
        """The same, its masks on a device."""
        for name in ("line_ends", "caption", "caption_start", "caption_blank", "caption_visible", "lyrics"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    @cached_property
    def wraps(self) -> list[int]:
        """Tokens that begin the next line of a folded caption: YAML indents it by two spaces."""
        return [token for token, spelled in self._bytes.items() if spelled in {b" ", b"  "}]

    def follow(self, pending: bytes, token: int) -> tuple[str, bytes]:
        """The text that a token completes after `pending` bytes of a character, and the bytes it leaves pending."""
        followed = _decoded(pending + self._bytes[token])
        if followed is None:
            raise ValueError(f"token {token} is no text after {pending!r}")
        return followed

    def completions(self, pending: bytes, *, briefly: bool) -> list[int]:
        """Tokens that go on where a character's bytes are cut; `briefly`: with that character and nothing more."""
        if (pending, briefly) not in self._completions:
            fitting = []
            for token in self._continuing:
                followed = _decoded(pending + self._bytes[token])
                if not followed or _UNPRINTABLE.search(followed[0]) or "\n" in followed[0]:
                    continue
                if not briefly or all(byte & 0xC0 == 0x80 for byte in self._bytes[token]):
                    fitting.append(token)
            self._completions[pending, briefly] = fitting
        return self._completions[pending, briefly]

    def _sort(self) -> None:
        kinds = ("words", "blanks", "cut", "line_ends", "blank_line_ends", "lines")
        sorted_: dict[str, list[int]] = {kind: [] for kind in kinds}
        for token, spelled in self._bytes.items():
            followed = _decoded(spelled)
            if followed is None or not spelled or _UNPRINTABLE.search(followed[0]):
                continue
            text, pending = followed
            blank = not (text.strip() or pending)
            if "\n" not in text:
                fitting = ["words", *(["blanks"] if blank else []), *(["cut"] if pending else [])]
            elif text.find("\n") == len(text) - 1 and not pending:
                fitting = ["line_ends", *(["blank_line_ends"] if blank else [])]
            else:
                fitting = ["lines"]
            for kind in fitting:
                sorted_[kind].append(token)
        words, blanks, cut, self.line_ends, blank_line_ends, lines = (self._mask(sorted_[kind]) for kind in kinds)
        self.caption = words | self.line_ends
        self.caption_start = self.caption & ~blank_line_ends
        self.caption_blank = self.caption_start & ~blanks
        self.caption_visible = self.caption_blank & ~cut
        self.lyrics = self.caption | lines | self._mask([self.end])

    def _mask(self, tokens: list[int]) -> Tensor:
        mask = torch.zeros(self.width, dtype=torch.bool)
        mask[tokens] = True
        return mask


def _decoded(spelled: bytes) -> tuple[str, bytes] | None:
    """The characters that are whole, and the bytes of a character that is cut; None where no text begins so."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(spelled)
    except UnicodeDecodeError:
        return None
    pending = decoder.getstate()[0]
    # The decoder waits for a surrogate's third byte before it refuses it.
    return None if pending[:1] == b"\xed" and pending[1:] >= b"\xa0" else (text, pending)


def _code_ids(added: dict[str, int]) -> tuple[int, ...]:
    codes = {int(found[1]): token for name, token in added.items() if (found := _CODE.fullmatch(name))}
    if sorted(codes) != list(range(len(codes))):
        raise ConfigurationError("its tokenizer has <|audio_code_N|> tokens with gaps between them; fetch it again")
    return tuple(codes[code] for code in range(len(codes)))


def _spelled(tokenizer: PreTrainedTokenizerBase, added: dict[str, int]) -> dict[int, bytes]:
    markers = set(added.values())
    names = {token: name for name, token in tokenizer.get_vocab().items() if token not in markers}
    try:
        spelled = {token: bytes(_BYTE[char] for char in names[token]) for token in sorted(names)}
    except KeyError as error:
        raise ConfigurationError(f"its tokenizer is not a byte-level one ({error} stands for no byte)") from error
    missing = set(range(0x100)) - {piece[0] for piece in spelled.values() if len(piece) == 1}
    if missing:
        raise ConfigurationError(
            f"its tokenizer lacks {len(missing)} of the 256 bytes, so not every text can be written"
        )
    return spelled
