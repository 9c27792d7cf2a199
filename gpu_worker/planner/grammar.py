"""What a planner may write, token by token: an automaton whose every path parses, whatever the logits say.

Fields with finitely many values are tries over whole lines as the tokenizer spells them; so is what is fixed or given,
a trie of one path. Captions and lyrics are free within UTF-8, their line breaks and their bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gpu_worker.planner.prompts import CHOICES, END_OF_THINK, THINK, field_line, unfolded
from gpu_worker.planner.vocabulary import Vocabulary

# Of a spec's 8,192 and 16,384 characters; a token of white space alone may bring 128.
CAPTION_TOKENS, CAPTION_CHARACTERS = 512, 4_000
LYRICS_TOKENS, LYRICS_CHARACTERS = 3_072, 12_000

Trie = dict[int | None, Any]  # token: Trie, and at the end None: value
Value = int | str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the lines in a trie; without a `name` its value is not kept."""

    name: str | None
    trie: Trie
    most_tokens: int


@dataclass(frozen=True, slots=True)
class FreeText:
    """Text of the model's own: a caption to the end of its line, or lyrics to the end token."""

    name: str
    lyrics: bool
    bound_tokens: int
    bound_characters: int

    @property
    def most_tokens(self) -> int:
        """Three tokens may complete a character that is cut at the bound, and one ends the text."""
        return self.bound_tokens + 4


Segment = Choice | FreeText


class Grammars:
    """The grammars of one vocabulary. `most_caption_tokens`, `most_lyrics_tokens` bound what is free."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        most_caption_tokens: int = CAPTION_TOKENS,
        most_lyrics_tokens: int = LYRICS_TOKENS,
    ) -> None:
        self._vocabulary = vocabulary
        self._think, self._caption_name, self._end_of_think = (
            self._choice(None, [(text, text)]) for text in (THINK, "caption:", END_OF_THINK)
        )
        self._fields = {
            name: self._choice(name, [(field_line(name, value), value) for value in values])
            for name, values in CHOICES.items()
        }
        self._caption = FreeText("caption", False, most_caption_tokens, CAPTION_CHARACTERS)
        self._lyrics = FreeText("lyrics", True, most_lyrics_tokens, LYRICS_CHARACTERS)

    def walk(self, given: Mapping[str, Value], *, lyrics: bool) -> Walk:
        """Metadata with the given fields word for word, and lyrics after it where they are wanted."""
        segments: list[Segment] = [self._think]
        for name in sorted({"caption", *CHOICES}):
            if name in given:
                segments.append(self._given(name, given[name]))
            elif name == "caption":
                segments += [self._caption_name, self._caption]
            else:
                segments.append(self._fields[name])
        return Walk(self._vocabulary, [*segments, self._end_of_think, *([self._lyrics] if lyrics else [])])

    def _given(self, name: str, value: Value) -> Choice:
        line = field_line(name, self._vocabulary.plain(value) if isinstance(value, str) else value)
        return self._choice(name, [(line, value)])

    def _choice(self, name: str | None, options: Iterable[tuple[str, Value]]) -> Choice:
        root: Trie = {}
        most = 0
        for text, value in options:
            node, tokens = root, self._vocabulary.encode(text)
            for token in tokens:
                node = node.setdefault(token, {})
            node[None] = value
            most = max(most, len(tokens))
        return Choice(name, root, most)


class Walk:
    """One text of at most `most_tokens` on its way through its segments; `values` are of the fields written so far."""

    def __init__(self, vocabulary: Vocabulary, segments: Sequence[Segment]) -> None:
        self._vocabulary = vocabulary
        self._left = list(reversed(segments))
        self.values: dict[str, Value] = {}
        self.most_tokens = sum(segment.most_tokens for segment in segments)
        self._next()

    @property
    def done(self) -> bool:
        """Whether all is written."""
        return self._state is None

    def allowed(self) -> Tensor | list[int]:
        """The tokens that may come next: a mask [width], or a few ids; never none before it is done."""
        return [] if self._state is None else self._state.allowed()

    def forced(self) -> list[int]:
        """The tokens up to the first that the model is to choose; they are passed."""
        passed: list[int] = []
        while isinstance(tokens := self.allowed(), list) and len(tokens) == 1:
            passed += tokens
            self.advance(tokens[0])
        return passed

    def advance(self, token: int) -> None:
        """Accept a token. Raises KeyError or ValueError if it is not allowed."""
        state = self._state
        if isinstance(state, _Caption) and state.ends_before(token):
            self._end(state)
            state = self._state
        if state is None:
            raise ValueError(f"token {token} comes after the end")
        state.advance(token)
        if state.done:
            self._end(state)

    def _end(self, state: _Line | _Caption | _Lyrics) -> None:
        if state.name is not None:
            self.values[state.name] = state.value()
        self._next()

    def _next(self) -> None:
        self._state: _Line | _Caption | _Lyrics | None = None
        if self._left:
            segment = self._left.pop()
            if isinstance(segment, Choice):
                self._state = _Line(segment)
            elif segment.lyrics:
                self._state = _Lyrics(self._vocabulary, segment)
            else:
                following = self._left[-1]
                assert isinstance(following, Choice)  # noqa: S101  # a caption stands between fields
                self._state = _Caption(self._vocabulary, segment, _Line(following).allowed())


class _Line:
    def __init__(self, choice: Choice) -> None:
        self.name, self._node = choice.name, choice.trie

    @property
    def done(self) -> bool:
        return None in self._node

    def allowed(self) -> list[int]:
        return [token for token in self._node if token is not None]

    def advance(self, token: int) -> None:
        self._node = self._node[token]

    def value(self) -> Value:
        kept: Value = self._node[None]
        return kept


class _Text:
    """Free text: whole characters, and the bytes of a character that is cut between tokens."""

    done = False

    def __init__(self, vocabulary: Vocabulary, segment: FreeText) -> None:
        self._vocabulary, self._segment = vocabulary, segment
        self.name = segment.name
        self._text, self._pending, self._tokens = "", b"", 0

    @property
    def _full(self) -> bool:
        return self._tokens >= self._segment.bound_tokens or len(self._text) >= self._segment.bound_characters

    def advance(self, token: int) -> None:
        text, self._pending = self._vocabulary.follow(self._pending, token)
        self._text += text
        self._tokens += 1

    def _within_character(self) -> list[int]:
        return self._vocabulary.completions(self._pending, briefly=self._full)


class _Caption(_Text):
    """Ends where, after a line break, the next field begins; a line that is indented goes on with it."""

    def __init__(self, vocabulary: Vocabulary, segment: FreeText, following: list[int]) -> None:
        super().__init__(vocabulary, segment)
        self._following = following

    @property
    def _line_ended(self) -> bool:
        return self._text.endswith("\n") and not self._pending

    def allowed(self) -> Tensor | list[int]:
        if self._pending:
            return self._within_character()
        if self._line_ended:
            return self._following if self._full else [*self._following, *self._vocabulary.wraps]
        if not self._text.strip():
            if self._full:
                return self._vocabulary.caption_visible
            return self._vocabulary.caption_blank if self._text else self._vocabulary.caption_start
        return self._vocabulary.line_ends if self._full else self._vocabulary.caption

    def ends_before(self, token: int) -> bool:
        return self._line_ended and token in self._following

    def value(self) -> str:
        return unfolded(self._text)


class _Lyrics(_Text):
    def allowed(self) -> Tensor | list[int]:
        if self._pending:
            return self._within_character()
        return [self._vocabulary.end] if self._full else self._vocabulary.lyrics

    def advance(self, token: int) -> None:
        if token == self._vocabulary.end and not self._pending:
            self.done = True
        else:
            super().advance(token)

    def value(self) -> str:
        head, _, rest = self._text.strip().partition("\n")
        return rest.strip() if head.strip().lower() in {"# lyric", "# lyrics"} else self._text.strip()
