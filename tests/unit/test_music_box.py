"""The music box: what is on the barrel, what the composer pins there, and what words it understands."""

import random

import numpy as np
import pytest
from diffusers import AceStepPipeline
from diffusers.pipelines.ace_step.pipeline_ace_step import SFT_GEN_PROMPT, TASK_INSTRUCTIONS

from tools.music_box import barrel, lessons, words
from tools.music_box.barrel import Tempo
from tools.music_box.composer import FINAL_S, MOODS, Tune, accompaniment_channel, compose


@pytest.mark.parametrize("bpm", range(60, 161))
def test_a_tempo_is_at_most_two_percent_off(bpm: int) -> None:
    assert Tempo.nearest(bpm).bpm == pytest.approx(bpm, rel=0.02)


@pytest.mark.parametrize(("asked", "folded"), [(30, 60), (59, 118), (161, 80.5), (300, 150)])
def test_a_tempo_out_of_reach_is_halved_or_doubled(asked: int, folded: float) -> None:
    assert Tempo.nearest(asked).bpm == pytest.approx(folded, rel=0.02)


def test_the_ruling_marks_every_eighth_of_every_tempo_to_the_end() -> None:
    ruling = barrel.ruling()
    assert ruling.shape == (barrel.BUFFER_FRAMES, barrel.CHANNELS)
    for tooth in range(barrel.TEMPI):
        marked = np.flatnonzero(ruling[:, tooth])
        eighths = barrel.grid_frame(tooth, np.arange(len(marked)))
        assert (marked == eighths).all()
        assert (ruling[marked[::8], tooth] == 1.5).all()
        assert barrel.BUFFER_FRAMES - marked[-1] < 20


def tune(**changed: object) -> Tune:
    return Tune(**{"tonic": 9, "minor": True, "tempo": Tempo.nearest(100), "frames": 600, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("mood", MOODS)
@pytest.mark.parametrize("bpm", [63, 100, 158])
def test_a_tune_keeps_key_and_time_and_comes_to_an_end(mood: str, bpm: int) -> None:
    for tonic in range(12):
        asked = tune(tonic=tonic, minor=tonic % 2 == 0, mood=mood, tempo=Tempo.nearest(bpm))
        sheet = compose(asked, seed=tonic)
        frames, channels = np.nonzero(sheet[:, : barrel.STOPS.start])
        grid = barrel.grid_frame(asked.tempo.tooth, np.arange(500))
        assert set(frames) <= set(grid)
        melody = {(barrel.MELODY_LOW + channel) % 12 for channel in channels if channel in barrel.MELODY}
        assert melody <= set(asked.scale)
        assert frames.min() == barrel.LEAD_FRAMES
        left = asked.frames - frames.max()
        assert FINAL_S * 40 <= left <= FINAL_S * 40 + 2.1 * 60 / bpm * 40
        assert sheet[frames.max(), accompaniment_channel(tonic)] == barrel.PIN


def test_another_seed_is_another_tune_and_the_same_seed_the_same() -> None:
    assert (compose(tune(), 1) == compose(tune(), 1)).all()
    assert (compose(tune(), 1) != compose(tune(), 2)).any()


def test_lessons_show_each_task_as_the_pipeline_would() -> None:
    dice = random.Random(1)
    seen = set()
    for _ in range(300):
        one = lessons.lesson(dice, 200)
        said = [words.MEANINGS[place] for place in one.meanings]
        task = next(word for word in said if word in words.TASKS)
        seen.add(task)
        assert said[-1] == words.END
        if task == "repaint":
            outside = one.mask[:, 0] == 0
            assert np.abs(one.context[outside] - one.answer[outside])[:, : barrel.STOPS.start].mean() < 1
        elif task == "text2music":
            assert (one.context[:, : barrel.TEMPI] != 0).any()
        assert (one.mask == 1).all() or task == "repaint"
    assert seen == set(words.TASKS)


def understood(caption: str, task: str = "text2music", bpm: int | None = None, key: str | None = None) -> list[str]:
    instruction = TASK_INSTRUCTIONS[task].format(TRACK_NAME="DRUMS", TRACK_CLASSES="BASS | DRUMS")
    metas = AceStepPipeline._build_metadata_string(bpm, key, "4", 15.0)
    meanings = words.meaning_of_tokens()
    tokens = words.tokenizer()(SFT_GEN_PROMPT.format(instruction, caption, metas)).input_ids
    return [words.MEANINGS[meanings[token]] for token in tokens]


@pytest.mark.parametrize(
    ("caption", "meanings"),
    [
        ("jazz piano, smooth", ["pluck", "calm"]),
        ("A HAPPY Music  Box with bells", ["happy", "bell"]),
        ("悲しい笛の曲", ["sad", "key 9 minor", "pipe"]),
        ("a slow, sad harp", ["calm", "tempo 17 slow", "sad", "key 9 minor", "pluck"]),
        ("a fast flute", ["dance", "tempo 16 fast", "pipe"]),
        ("楽しいオルゴール、ハ長調、テンポ120", ["happy", "bell", "key 0 major", "tempo 12 fast"]),
        ("crusaders saddle up", []),
        ("flute in C♯ minor, 72 BPM", ["pipe", "key 1 minor", "tempo 17 slow"]),
        ("Ｆｌｕｔｅ, 変ロ短調", ["pipe", "key 10 minor"]),
        ("嬰ト短調", ["key 8 minor"]),
        ("変ト長調", ["key 6 major"]),
        ("オルゴール、変ハ長調", ["bell", "key 11 major"]),
        ("嬰イ短調", ["key 10 minor"]),
    ],
)
def test_plain_words_are_understood_in_english_and_japanese(caption: str, meanings: list[str]) -> None:
    unsaid = [words.tempo(words.UNSAID_TEMPO), words.key(words.UNSAID_TONIC, minor=False)]
    assert understood(caption) == ["text2music", *meanings, *unsaid, words.END]


def test_what_metadata_state_is_not_asked_of_the_caption() -> None:
    said = understood("a slow, sad harp in D major, 100 bpm", bpm=120, key="Eb minor")
    assert said == ["text2music", "calm", "sad", "pluck", "tempo 12 fast", "key 3 minor", words.END]


def test_metadata_and_tasks_are_understood_in_the_templates_words() -> None:
    assert understood("", bpm=120, key="Eb minor") == ["text2music", "tempo 12 fast", "key 3 minor", words.END]
    for task in words.TASKS:
        assert task in understood("", task)
    assert understood("", "extract")[1] == "drums"
    assert understood("", "complete")[1:3] == ["accompaniment", "drums"]
