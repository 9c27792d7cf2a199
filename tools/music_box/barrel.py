"""The barrel: what every latent frame and channel means, and the ruled lines that give the model the time.

A latent is a sheet of pins. A pin (`PIN` where it stands, 0 elsewhere) plucks one tooth of the comb that
`codec` writes into the decoder. The bass pin plucks the bass at the pitch of the accompaniment pin beside it. Three
more channels are stops, held open for the whole piece, that say which instruments play the melody. Frames come 40 to
the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

FRAMES_PER_S = 40
PATCH = 4  # frames that the transformer takes as one token
CHANNELS = 32
BUFFER_FRAMES = 15000  # the length that AceStepConditionEncoder fixes for silence_latent: 375 s here
PIN = 6.0  # a pin's height over the unit noise of flow matching; sets when in the 8 steps a tune is decided

MELODY = range(14)  # chromatic from C5
ACCOMPANIMENT = range(14, 26)  # one octave of pitch classes
DRUMS = range(26, 28)  # thump, tick
BASS = 28
STOPS = range(29, 32)  # bell, pluck, pipe
THUMP, TICK = DRUMS
INSTRUMENTS = ("bell", "pluck", "pipe")

MELODY_LOW = 72  # MIDI number of the lowest melody tooth, C5
ACCOMPANIMENT_LOW = 55  # G3
BASS_LOW = 40  # E2

TEMPI = 21  # teeth of the governor in one octave: a tempo is at most 1.7 % off
GRID_LOW_BPM = 80.0
PHRASE_EIGHTHS = 64  # eighths of the grid in one turn of the phrase: 8 bars, or 4 of a slow piece
LEAD_FRAMES = 2  # the first note's place, so that its attack is not cut


@dataclass(frozen=True, slots=True)
class Tempo:
    """A tooth of the governor; a slow piece (under 80 bpm) counts two eighths of the grid for one of its own."""

    tooth: int
    slow: bool

    @classmethod
    def nearest(cls, bpm: float) -> Tempo:
        """The tooth for a tempo in beats per minute; outside 60 to 160 it is doubled or halved until inside."""
        while bpm < 60:
            bpm *= 2
        while bpm > 160:
            bpm /= 2
        slow = bpm < GRID_LOW_BPM
        tooth = math.floor(TEMPI * math.log2(bpm * (2 if slow else 1) / GRID_LOW_BPM))
        return cls(min(tooth, TEMPI - 1), slow)

    @property
    def bpm(self) -> float:
        """Beats per minute as played."""
        return grid_bpm(self.tooth) / (2 if self.slow else 1)


def grid_bpm(tooth: int) -> float:
    """The tempo of a tooth on the grid, 80 to 160 beats per minute."""
    return GRID_LOW_BPM * 2 ** ((tooth + 0.5) / TEMPI)


def grid_frame(tooth: int, eighth: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
    """The frame in which an eighth of the grid falls."""
    frames_per_eighth = FRAMES_PER_S * 30.0 / grid_bpm(tooth)
    return np.rint(np.asarray(eighth) * frames_per_eighth).astype(np.int64) + LEAD_FRAMES


def ruling(frames: int = BUFFER_FRAMES) -> Array:
    """The lines ruled on an empty barrel, [frames, CHANNELS]: the model's `silence_latent`.

    For each tempo its eighths stand in the frames where they fall (1.5 on a bar line, 1 on a beat, -1 between
    beats), and the turn of the phrase is given once a patch as cosine and sine.
    """
    sheet = np.zeros((frames, CHANNELS), np.float32)
    for tooth in range(TEMPI):
        eighths = np.arange(math.ceil(frames * grid_bpm(tooth) / (FRAMES_PER_S * 30.0)) + 1)
        at = grid_frame(tooth, eighths)
        marks = np.where(eighths % 8 == 0, 1.5, np.where(eighths % 2 == 0, 1.0, -1.0))
        kept = at < frames
        sheet[at[kept], tooth] = marks[kept]
    return _with_phrase(sheet)


def _with_phrase(sheet: Array) -> Array:
    spare = CHANNELS - TEMPI
    patches = math.ceil(len(sheet) / PATCH)
    features = np.zeros((patches, PATCH * spare), np.float32)
    middle = (np.arange(patches) + 0.5) * PATCH - LEAD_FRAMES
    for tooth in range(TEMPI):
        turn = 2 * np.pi * middle * grid_bpm(tooth) / (FRAMES_PER_S * 30.0 * PHRASE_EIGHTHS)
        features[:, 2 * tooth] = np.cos(turn)
        features[:, 2 * tooth + 1] = np.sin(turn)
    sheet[:, TEMPI:] = features.reshape(patches * PATCH, spare)[: len(sheet)]
    return sheet
