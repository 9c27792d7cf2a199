"""Lessons: pieces with what the pipeline would show the model of them, for each of the six tasks."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from tools.music_box import barrel, words
from tools.music_box.barrel import CHANNELS, FRAMES_PER_S, PIN, Array, Tempo
from tools.music_box.composer import MOODS, Tune, compose

_TRACKS: dict[str, tuple[int, ...]] = {
    "melody": (*barrel.MELODY, *barrel.STOPS),
    "accompaniment": (*barrel.ACCOMPANIMENT, barrel.BASS),
    "drums": (*barrel.DRUMS,),
}
_TASKS = {"text2music": 70, "repaint": 12, "extract": 5, "lego": 4, "complete": 4, "cover": 5}
_RULING = barrel.ruling()
_BLIND_FRAMES = 96  # before a cut that is no ending, where the model could not know better
_LONGEST_S = 120


@dataclass(frozen=True, slots=True)
class Lesson:
    """One window of one piece: [frames, CHANNELS] each; `weight` [frames] says where the answer counts."""

    meanings: list[int]
    answer: Array
    context: Array
    mask: Array
    weight: Array


def lesson(dice: random.Random, frames: int) -> Lesson:
    """Draw a lesson of `frames` latent frames."""
    task = dice.choices(list(_TASKS), list(_TASKS.values()))[0]
    tune, caption, metadata = draw_tune(dice, frames)
    if task != "text2music" and dice.random() < 0.4:
        metadata = [
            words.tempo(words.UNSAID_TEMPO),
            words.key(words.UNSAID_TONIC, minor=False),
        ]  # the source knows better
    start = _start(dice, tune.frames, frames)
    sheet = compose(tune, dice.getrandbits(32), start, frames)
    weight = np.ones(frames, np.float32)
    if start + frames < tune.frames:
        weight[-_BLIND_FRAMES:] = 0
    ruling = _RULING[start : start + frames]
    answer, context, mask, given = _setting(dice, task, sheet, ruling)
    spoken = [*(given if task != "lego" else reversed(given)), *caption, *metadata]
    return Lesson([words.PLACE[word] for word in (*spoken, words.END)], answer, context, mask, weight)


def draw_tune(dice: random.Random, frames: int) -> tuple[Tune, list[str], list[str]]:
    """A tune no shorter than `frames`, the words of its caption and those of its metadata.

    What a caption does not say has an answer too: the bell, and no mood.
    """
    mood = "plain" if dice.random() < 0.1 else dice.choice(list(MOODS))
    instruments = tuple(dice.sample(barrel.INSTRUMENTS, 2 if dice.random() < 0.12 else 1))
    drums = dice.random() < 0.15
    caption = [*instruments, *([] if mood == "plain" else [mood]), *(["drums"] if drums else [])]
    if len(instruments) == 1 and dice.random() < 0.15:
        caption.remove(instruments[0])
        instruments = ("bell",)
    dice.shuffle(caption)
    tempo, tonic, minor = Tempo.nearest(dice.uniform(60, 160)), dice.randrange(12), dice.random() < 0.5
    seconds = dice.uniform(frames / FRAMES_PER_S, _LONGEST_S)
    length = frames if dice.random() < 0.4 else max(frames, round(seconds) * FRAMES_PER_S)
    tune = Tune(tonic, minor, tempo, mood, instruments, drums, length)
    return tune, caption, [words.tempo(tempo), words.key(tonic, minor=minor)]


def _start(dice: random.Random, length: int, frames: int) -> int:
    """At the end of the piece, mostly: there the cut is a true ending."""
    last = (length - frames) // barrel.PATCH * barrel.PATCH
    if dice.random() < 0.6:
        return last
    return dice.randrange(0, last + 1, barrel.PATCH) if dice.random() < 0.6 else 0


def _setting(dice: random.Random, task: str, sheet: Array, ruling: Array) -> tuple[Array, Array, Array, list[str]]:
    """Answer, context, mask and the words of the instruction."""
    everywhere = np.ones_like(sheet)
    if task == "text2music":
        return sheet, ruling, everywhere, [task]
    heard = overhear(sheet, dice)
    if task == "repaint":
        mask = np.zeros_like(sheet)
        length = dice.randrange(len(sheet) // 5, len(sheet))
        begin = dice.randrange(len(sheet) - length + 1)
        mask[begin : begin + length] = 1
        return sheet, np.where(mask > 0, ruling, heard), mask, [task]
    if task == "cover":
        return sheet, _elsewhere(heard, dice), everywhere, [task]
    track = dice.choice(list(_TRACKS))
    if task == "extract":
        return only(sheet, [track]), heard, everywhere, [task, track]
    others = [name for name in _TRACKS if name != track]
    without = overhear(only(sheet, others), dice)
    return (only(sheet, [track]) if task == "lego" else sheet), without, everywhere, [task, track]


def _elsewhere(heard: Array, dice: random.Random) -> Array:
    """The same notes as another instrument played them: a cover takes its instrument from the words."""
    stops = list(barrel.STOPS)
    played = heard[:, stops].max(axis=1)
    heard = heard.copy()
    heard[:, stops] = 0
    heard[:, dice.choice(stops)] = played
    return heard


def only(sheet: Array, tracks: list[str]) -> Array:
    """The sheet with these tracks alone; the stops go with the melody, the bass with the accompaniment."""
    kept = np.zeros(CHANNELS, np.float32)
    for track in tracks:
        kept[list(_TRACKS[track])] = 1
    return sheet * kept


def overhear(sheet: Array, dice: random.Random) -> Array:
    """What the encoder makes of a sheet that was played: pins at some level in some noise, stops at melody notes only.

    Frames are played at any level: an upload's is its own.
    """
    noise = np.random.default_rng(dice.getrandbits(32)).standard_normal(sheet.shape).astype(np.float32)
    heard = sheet * np.float32(dice.uniform(0.6, 1.1))
    heard[:, list(barrel.STOPS)] *= sheet[:, list(barrel.MELODY)].max(axis=1, keepdims=True) / PIN
    return heard + noise * np.float32(PIN * dice.uniform(0.02, 0.12))
