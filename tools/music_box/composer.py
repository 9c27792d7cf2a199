"""The composer: tunes by rule and dice, pinned on a barrel. Our own rules; nothing is quoted."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from tools.music_box import barrel
from tools.music_box.barrel import Array, Tempo

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
LOOPS = {  # scale degrees, a bar each; all begin at home, so that the key is heard
    False: ((0, 3, 4, 0), (0, 5, 4, 0), (0, 4, 3, 0), (0, 3, 0, 4)),
    True: ((0, 3, 4, 0), (0, 0, 4, 0), (0, 4, 3, 0), (0, 4, 0, 4)),
}
FINAL_S = 1.2  # the last chord rings at least this long
CLOSE_EIGHTHS = 4  # before the last chord, on the dominant and without drums


@dataclass(frozen=True, slots=True)
class Mood:
    """How a bar is filled: by eighths 0 to 7."""

    melody: tuple[float, ...]  # chance of a note on each eighth
    accompaniment: dict[
        int, str
    ]  # which chord tones (root, third, fifth) sound on an eighth; one alone may be the bass's
    bass: tuple[int, ...] = (0, 4)
    thump: tuple[int, ...] = ()
    tick: tuple[int, ...] = ()


MOODS = {
    "plain": Mood((1, 0.3, 0.8, 0.4, 0.9, 0.3, 0.8, 0.4), {0: "r", 2: "35", 4: "5", 6: "r3"}),
    "happy": Mood((1, 0.5, 0.9, 0.5, 0.9, 0.5, 0.9, 0.6), {0: "r", 2: "35", 4: "5", 6: "r3"}, (0, 4), (0, 4), (2, 6)),
    "calm": Mood((1, 0.1, 0.7, 0.2, 0.8, 0.1, 0.6, 0.1), {0: "r", 2: "5", 3: "3", 4: "r", 6: "5", 7: "3"}, (0,)),
    "sad": Mood((1, 0.0, 0.5, 0.2, 0.8, 0.0, 0.5, 0.2), {0: "r", 2: "35", 4: "5", 6: "r3"}, (0, 4)),
    "dance": Mood(
        (1, 0.5, 0.9, 0.6, 0.9, 0.5, 0.9, 0.6),
        {0: "r", 1: "35", 2: "r", 3: "35", 4: "r", 5: "35", 6: "5", 7: "r3"},
        (0, 2, 4, 6),
        (0, 2, 4, 6),
        (1, 3, 5, 7),
    ),
}
PLAIN_DRUMS = Mood((), {}, (), (0, 4), (2, 6))  # for a mood without drums, where they are asked for


@dataclass(frozen=True, slots=True)
class Tune:
    """What is asked of the composer. Durations are in latent frames."""

    tonic: int  # pitch class, C is 0
    minor: bool
    tempo: Tempo
    mood: str = "plain"
    instruments: tuple[str, ...] = ("bell",)
    drums: bool = False
    frames: int = 15 * barrel.FRAMES_PER_S

    @property
    def scale(self) -> tuple[int, ...]:
        """The seven pitch classes, from the tonic."""
        return tuple((self.tonic + step) % 12 for step in (MINOR if self.minor else MAJOR))

    def chord(self, degree: int) -> dict[str, int]:
        """Pitch classes of a triad; the fifth degree is major in minor keys too, as its leading tone shows the key."""
        root, third, fifth = (self.scale[(degree + i) % 7] for i in (0, 2, 4))
        if self.minor and degree == 4:
            third = (root + 4) % 12
        return {"r": root, "3": third, "5": fifth}

    def last_eighth(self) -> int:
        """The grid eighth of the last chord: the last beat that leaves it time to ring."""
        beat = 4 if self.tempo.slow else 2
        latest = self.frames - FINAL_S * barrel.FRAMES_PER_S
        eighth = 0
        while barrel.grid_frame(self.tempo.tooth, eighth + beat) <= latest:
            eighth += beat
        return eighth


class _Walk:
    """The melody's pitch: a walk on the scale that lands on chord tones on the strong eighths."""

    def __init__(self, tune: Tune, dice: random.Random) -> None:
        self._dice = dice
        self._teeth = [i for i in barrel.MELODY if (barrel.MELODY_LOW + i) % 12 in tune.scale]
        self._at = dice.randrange(len(self._teeth))

    def step(self, goals: set[int]) -> int:
        """The next tooth; on one of the goals' pitch classes, where there are any."""
        self._at += self._dice.choice((-2, -1, -1, 0, 1, 1, 2))
        self._at = min(max(self._at, 0), len(self._teeth) - 1)
        if goals:
            near = [i for i, tooth in enumerate(self._teeth) if (barrel.MELODY_LOW + tooth) % 12 in goals]
            self._at = min(near, key=lambda i: (abs(i - self._at), self._dice.random()))
        return self._teeth[self._at]


def compose(tune: Tune, seed: int, start: int = 0, frames: int | None = None) -> Array:
    """Pin a tune on a barrel, [frames, CHANNELS]; a window of it when `start` and `frames` are given.

    A window is composed by itself: windows of one seed are not cuts of one piece.
    """
    frames = tune.frames - start if frames is None else frames
    dice = random.Random(seed)  # noqa: S311 - music, not secrets
    sheet = np.zeros((tune.frames, barrel.CHANNELS), np.float32)
    bar = 16 if tune.tempo.slow else 8
    first = max(0, int((start - barrel.LEAD_FRAMES) * barrel.grid_bpm(tune.tempo.tooth) / 1200) // bar - 1)
    last_eighth = tune.last_eighth()
    stop = min(last_eighth, int((start + frames) * barrel.grid_bpm(tune.tempo.tooth) / 1200) + 1)
    loop = dice.choice(LOOPS[tune.minor])
    walk = _Walk(tune, dice)
    rhythm = _rhythm(tune, dice)
    for number in range(first, stop // bar + 1):
        if number % 4 == 0:
            rhythm = _rhythm(tune, dice)
        played = _rhythm(tune, dice) if dice.random() < 0.2 else rhythm
        if number % 4 == 3:
            played = tuple(eighth for eighth in played if eighth <= 4)
        _pin_bar(sheet, tune, _Bar(number, tune.chord(loop[number % 4]), played), last_eighth, walk)
    if stop == last_eighth:
        _pin_end(sheet, tune, last_eighth)
    for instrument in tune.instruments:
        sheet[:, barrel.STOPS[barrel.INSTRUMENTS.index(instrument)]] = barrel.PIN
    return sheet[start : start + frames]


def _rhythm(tune: Tune, dice: random.Random) -> tuple[int, ...]:
    return tuple(i for i, chance in enumerate(MOODS[tune.mood].melody) if dice.random() < chance)


@dataclass(frozen=True, slots=True)
class _Bar:
    number: int
    chord: dict[str, int]
    rhythm: tuple[int, ...]


def _pin_bar(sheet: Array, tune: Tune, bar: _Bar, last: int, walk: _Walk) -> None:
    mood = MOODS[tune.mood]
    drums = PLAIN_DRUMS if tune.drums and not mood.thump else mood
    unit = 2 if tune.tempo.slow else 1
    for eighth in range(8):
        grid = (bar.number * 8 + eighth) * unit
        if grid >= last:
            return
        closing = last - grid <= CLOSE_EIGHTHS * unit
        chord = tune.chord(4) if closing else bar.chord
        row = sheet[int(barrel.grid_frame(tune.tempo.tooth, grid))]
        if eighth in bar.rhythm:
            row[walk.step(_goals(tune, bar.number, chord, eighth))] = barrel.PIN
        for tone in mood.accompaniment.get(eighth, ""):
            row[accompaniment_channel(chord[tone])] = barrel.PIN
        if eighth in mood.bass:
            row[barrel.BASS] = barrel.PIN
        for channel, places in zip(barrel.DRUMS, (drums.thump, drums.tick), strict=True):
            if eighth in places and not closing:
                row[channel] = barrel.PIN


def _goals(tune: Tune, bar: int, chord: dict[str, int], eighth: int) -> set[int]:
    """The pitch classes a melody note must fall on: the chord's on strong eighths, home where a loop comes home."""
    if eighth not in {0, 4}:
        return set()
    home = chord["r"] == tune.tonic and (bar % 4 == 3 or (bar % 4 == 0 and eighth == 0))
    return {tune.tonic} if home else set(chord.values()) & set(tune.scale)


def _pin_end(sheet: Array, tune: Tune, last: int) -> None:
    """The last chord: the tonic in the melody, in the accompaniment and, as it is alone there, in the bass."""
    row = sheet[int(barrel.grid_frame(tune.tempo.tooth, last))]
    row[accompaniment_channel(tune.tonic)] = barrel.PIN
    row[barrel.BASS] = barrel.PIN
    home, third = ((pitch_class - barrel.MELODY_LOW) % 12 for pitch_class in (tune.tonic, tune.chord(0)["3"]))
    row[home] = row[third] = barrel.PIN
    if tune.drums or MOODS[tune.mood].thump:
        row[barrel.THUMP] = barrel.PIN


def accompaniment_channel(pitch_class: int) -> int:
    """The channel of the accompaniment's tooth for a pitch class."""
    return barrel.ACCOMPANIMENT[(pitch_class - barrel.ACCOMPANIMENT_LOW) % 12]
