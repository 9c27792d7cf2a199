"""Token for token what a reference without cache, batch or slices writes: alone, together, resumed, guided or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gpu_worker.planner import decoding
from gpu_worker.planner.decoding import Head, Row, Sampling, decode, pick
from gpu_worker.planner.planner import Planner, code_count
from gpu_worker.planner.prompts import GENERATE, Metadata, request, song_text, thought
from gpu_worker.planner.questions import Song
from serinette.errors import InvalidOutput, InvalidSpec
from tests.tiny_checkpoint import tiny_tokenizer
from tests.unit.test_planner_loading import CPU, one_thread, tiny_model, tiny_planner, unobserved

__all__ = ["one_thread"]

FULL = Metadata("calm", 90, 4, "C major", "4", "en")
SONGS = [
    Song("calm piano", "", replace(FULL, duration_s=4), seed=7),
    Song("静かな夜のピアノ " * 5, "さくら さくら\n" * 4, replace(FULL, duration_s=2.4), seed=8),
    Song("x", "la", replace(FULL, duration_s=3.2), 9, Sampling(temperature=1.3, top_p=1.0, cfg_scale=1.0)),
    Song("fast", "la la", replace(FULL, duration_s=3), 9, Sampling(temperature=0.0, cfg_scale=3.5)),
]


def drawn(logits: Tensor, number: float, sampling: Sampling) -> int:
    """One token of logits [tokens], in Python's own arithmetic."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    chances = (logits.double() / sampling.temperature).softmax(-1).tolist()
    kept, sum_ = [], 0.0
    for token in sorted(range(len(chances)), key=lambda token: -chances[token]):
        if sum_ >= sampling.top_p or not chances[token]:
            break
        kept.append(token)
        sum_ += chances[token]
    left = number * sum_
    for token in kept:
        left -= chances[token]
        if left < 0:
            return token
    return kept[-1]


def logits(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0, -1]
    return answer


def reference(model: PreTrainedModel, row: Row, allowed: Sequence[int] | None = None) -> list[int]:
    """The whole text read anew for each token, over the whole vocabulary; `allowed` for a row without a grammar."""
    numbers = torch.rand(row.most, generator=torch.Generator().manual_seed(row.seed)).tolist()
    texts = [list(row.prompt), list(row.negative)]
    tokens: list[int] = []
    while len(tokens) < row.most and not (allowed is None and row.path.done):
        with_condition = logits(model, texts[0])
        without = logits(model, texts[1]) if row.sampling.cfg_scale != 1 else with_condition
        guided = without + row.sampling.cfg_scale * (with_condition - without)
        may = row.path.allowed() if allowed is None else list(allowed)
        assert may is not None
        mask = torch.full_like(guided, -torch.inf)
        mask[may] = 0
        token = drawn(guided + mask, numbers[row.written + len(tokens)], row.sampling)
        tokens.append(token)
        for text in texts:
            text.append(token)
        if allowed is None:
            row.path.advance(token)
    return tokens


@pytest.fixture(scope="module")
def planner() -> Planner:
    return tiny_planner(layers=3)


@pytest.fixture(scope="module")
def expected(planner: Planner) -> list[list[int]]:
    """The codes of SONGS, by the reference, from prompts put together here."""
    tokenizer = tiny_tokenizer()
    first = tokenizer.convert_tokens_to_ids("<|audio_code_0|>")
    assert isinstance(first, int)
    every = []
    for song in SONGS:
        user = song_text(song.caption, song.lyrics)
        with_plan, without = (
            tokenizer.encode(str(tokenizer.apply_chat_template(request(GENERATE, user, written), tokenize=False)))
            for written in (thought(song.given), "<think>\n</think>")
        )
        assert song.given.duration_s
        row = Row(with_plan, without, song.seed, song.sampling, Never(), code_count(song.given.duration_s))
        tokens = reference(planner._model, row, range(first, first + 256))
        every.append([token - first for token in tokens])
    return every


class Never:
    """The path of a row that only the reference reads."""

    done = False

    def allowed(self) -> list[int] | None:
        return None

    def advance(self, place: int) -> None:
        raise AssertionError(place)


def test_codes_alone_equal_the_reference(planner: Planner, expected: list[list[int]]) -> None:
    assert [planner.codes([song], unobserved)[0] for song in SONGS] == expected
    assert len({tuple(codes) for codes in expected}) == len(SONGS)


def test_codes_together_equal_the_reference(planner: Planner, expected: list[list[int]]) -> None:
    assert planner.codes(SONGS, unobserved) == expected
    assert planner.codes(SONGS[::-1], unobserved) == expected[::-1]


def test_codes_resumed_equal_the_reference(planner: Planner, expected: list[list[int]]) -> None:
    for kept in ([0, 5, 11, 15], [19, 12, 1, 0]):
        halves = [
            replace(song, codes=tuple(codes[:count])) for song, codes, count in zip(SONGS, expected, kept, strict=True)
        ]
        assert planner.codes(halves, unobserved) == expected


def test_guidance_and_seed_matter(planner: Planner, expected: list[list[int]]) -> None:
    without = replace(SONGS[0], sampling=Sampling(cfg_scale=1.0))
    assert planner.codes([without], unobserved)[0] != expected[0]
    assert planner.codes([replace(SONGS[0], seed=70)], unobserved)[0] != expected[0]
    twins = planner.codes([SONGS[0], SONGS[0], replace(SONGS[0], seed=70)], unobserved)
    assert twins[0] == twins[1] == expected[0] != twins[2]


def text_rows(planner: Planner) -> list[Row]:
    """Rows of the metadata's grammar, as the planner makes them."""
    rows: list[Row] = []

    class Kept(Exception):
        pass

    def keep(_model: object, _head: object, made: Sequence[Row], *_others: object) -> None:
        rows.extend(made)
        raise Kept

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpu_worker.planner.planner.decode", keep)
        for place, song in enumerate(SONGS):
            given = [Metadata(), Metadata(bpm=90), Metadata(caption="x"), Metadata(duration_s=30)][place]
            with pytest.raises(Kept):
                planner.metadata([replace(song, given=given)], unobserved)
    return rows


def test_metadata_equals_the_reference(planner: Planner) -> None:
    """With a grammar over the whole vocabulary, rows that end at different lengths, guided and not."""
    expected = []
    for row in text_rows(planner):
        reference(planner._model, row)
        expected.append(row.path.values)  # type: ignore[attr-defined]
    for together in (True, False):
        rows = text_rows(planner)
        for batch in [rows] if together else [[row] for row in rows]:
            decode(planner._model, Head(planner._model), batch, unobserved, None)
        assert [row.path.values for row in rows] == expected  # type: ignore[attr-defined]


CODES = {1: 5, 2: 10, 3.3: 17, 7.5: 38, 10: 50, 29.9: 150, 61: 305, 120: 600, 299.96: 1500, 600: 3000}


@pytest.mark.parametrize("most_s", [61, pytest.param(600, marks=pytest.mark.load)])
def test_exact_counts_at_ten_lengths(most_s: int) -> None:
    assert [code_count(duration_s) for duration_s in CODES] == list(CODES.values())
    unguided = Sampling(cfg_scale=1.0)
    lengths = {duration_s: codes for duration_s, codes in CODES.items() if duration_s <= most_s}
    songs = [Song("x", "", Metadata(duration_s=d), place, unguided) for place, d in enumerate(lengths)]
    reported = []

    def observe(done: int, total: int | None) -> frozenset[int]:
        reported.append((done, total))
        return frozenset()

    codes = tiny_planner(layers=1).codes(songs, observe)
    assert [len(each) for each in codes] == list(lengths.values())
    most = CODES[most_s]
    assert reported == [(done, most) for done in range(most)]


@pytest.mark.parametrize("duration_s", [0.9, 600.1, float("nan")])
def test_no_such_length(duration_s: float) -> None:
    with pytest.raises(InvalidSpec, match="must be 1 to 600"):
        code_count(duration_s)


@pytest.fixture
def forwards(planner: Planner) -> Iterator[list[int]]:
    """Grows by one whenever the model reads."""
    read: list[int] = []
    handle = planner._model.base_model.register_forward_hook(lambda *_: read.append(1))
    yield read
    handle.remove()


@pytest.mark.parametrize("after", [0, 1, 6])
def test_all_given_up_ends_within_a_token(planner: Planner, forwards: list[int], after: int) -> None:
    """Nothing more is read after that; what was written is kept, and can be gone on from."""
    given_up = planner.codes(SONGS, lambda done, _: frozenset(range(len(SONGS) if done >= after else 0)))
    assert len(forwards) == after
    assert [len(codes) for codes in given_up] == [after] * len(SONGS)
    whole = planner.codes(SONGS, unobserved)
    halves = [replace(song, codes=tuple(codes)) for song, codes in zip(SONGS, given_up, strict=True)]
    assert planner.codes(halves, unobserved) == whole


def test_one_given_up_leaves_the_others_as_they_are(planner: Planner, expected: list[list[int]]) -> None:
    codes = planner.codes(SONGS, lambda done, _: frozenset({1} if done == 3 else ()))
    assert codes[1] == expected[1][:3]
    assert [codes[place] for place in (0, 2, 3)] == [expected[place] for place in (0, 2, 3)]


def test_a_long_prompt_is_read_in_pieces(
    planner: Planner, forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    song = replace(SONGS[1], lyrics="さくら さくら\n" * 60)
    codes = planner.codes([song], unobserved)
    pieces = len(forwards)
    forwards.clear()
    monkeypatch.setattr(decoding, "READ_TOKENS", 10_000)
    assert planner.codes([song], unobserved) == codes
    assert pieces > len(forwards) == 12


def test_texts_beyond_the_context_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    planner = Planner.of_parts(tiny_model(len(tokenizer), max_position_embeddings=500), tokenizer, device=CPU)
    with pytest.raises(InvalidSpec, match=r"reads at most 500 tokens, and .* may take \d+: shorten them"):
        planner.codes([Song("calm", given=Metadata(duration_s=100))], unobserved)


def test_logits_that_are_not_finite(planner: Planner) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(len(tokenizer))
    model.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(InvalidOutput, match="not finite"):
        Planner.of_parts(model, tokenizer, device=CPU).codes(SONGS, unobserved)


@pytest.mark.parametrize("changed", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"cfg_scale": 0.5}])
def test_sampling_out_of_bounds(changed: dict[str, float]) -> None:
    with pytest.raises(InvalidSpec, match=f"lm_{next(iter(changed))}: must be"):
        Sampling(**changed)


def test_pick_at_the_edges() -> None:
    """A number next to 1, a nucleus of one, everything but one place forbidden, and ties."""
    row = torch.tensor([[0.0, 2.0, -torch.inf, 1.0, 2.0]])

    def place(number: float, *, temperature: float = 1.0, top_p: float = 1.0, of: Tensor = row) -> int:
        (found,) = pick(of, *(torch.tensor([[value]]) for value in (number, temperature, top_p))).tolist()
        return int(found)

    assert place(0.0) == 1
    assert place(1 - 2**-24) == 0
    assert place(1 - 2**-24, top_p=0.01) == 1
    assert place(0.9, temperature=0.0) == 1
    lone = torch.full((1, 5), -torch.inf)
    lone[0, 3] = -40.0
    assert [place(number, of=lone) for number in (0.0, 0.5, 1 - 2**-24)] == [3, 3, 3]
    assert place(0.5, of=torch.full((1, 5), torch.nan)) == -1
