"""The comb: which tooth sounds how. Our own synthesis, as numbers that `codec` writes into the decoder.

A partial is a phasor that turns and fades once a ring frame (160 a second) and is heard through a Hann window. A tooth
has a few partials, in fixed places of the stereo field, each with a way of fading of its own; an instrument is how loud
it sets off each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.music_box import barrel
from tools.music_box.barrel import Array

SAMPLE_RATE = 24_000
RING_HOP = 150  # samples; four ring frames to a latent frame
RING_RATE = SAMPLE_RATE // RING_HOP
BLOCKS = 7  # of nine slow ring frames (80 a second): a note rings for at most 0.79 s
LEVEL = 0.36  # peak of a partial at gain 1: a full piece then peaks near -1 dBFS


@dataclass(frozen=True, slots=True)
class Fading:
    """How a partial fades: 60 dB in `t60_s`, gains of the blocks on top, and gains of its first three ring frames."""

    t60_s: float
    blocks: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 0.85, 0.6, 0.3)
    attack: tuple[float, float, float] = (1.0, 0.0, 0.0)

    @property
    def decay(self) -> float:
        """What a slow ring frame leaves of the one before."""
        return float(10 ** (-3 / (self.t60_s * RING_RATE / 2)))


@dataclass(frozen=True, slots=True)
class Partial:
    """One phasor at gain 1."""

    hertz: float
    fading: Fading
    pan: float = 0.0  # -1 left, 1 right


# Which partials and strokes of noise a pin sets off, and how loud.
Excitation = dict[str, float]

_LONG = Fading(1.3)
_SHORT = Fading(0.55)
_TING = Fading(0.35)
_HELD = Fading(60.0, (1.0, 1.0, 0.95, 0.7, 0.35, 0.12, 0.03), (0.25, 0.5, 0.25))
_MELLOW = Fading(1.2, attack=(0.25, 0.5, 0.25))
_DEEP = Fading(1.5, attack=(0.25, 0.5, 0.25))
_THUD = Fading(0.28)

MELODY_PARTIALS: dict[str, tuple[float, Fading, float]] = {  # ratio to the tooth's pitch, fading, pan on top
    "long": (1.0, _LONG, 0.1),
    "second": (2.0, _SHORT, 0.35),
    "ting": (2.76, _TING, -0.35),
    "held": (1.0, _HELD, 0.2),
}
ACCOMPANIMENT_PARTIALS: dict[str, tuple[float, Fading, float]] = {
    "body": (1.0, _MELLOW, -0.65),
    "shimmer": (2.0, _SHORT, 0.8),
}
INSTRUMENTS: dict[str, Excitation] = {
    "bell": {"long": 0.9, "second": 0.08, "ting": 0.2, "hammer": 0.15},
    "pluck": {"long": 0.75, "second": 0.4, "hammer": 0.28},
    "pipe": {"held": 0.52, "second": 0.16, "breath": 0.5},
}
ACCOMPANIMENT: Excitation = {"body": 0.7, "shimmer": 0.3, "hammer": 0.12}
BASS: Excitation = {"deep": 0.85, "body": 0.2, "hammer": 0.2}
DRUMS: dict[int, Excitation] = {
    barrel.THUMP: {"thud": 1.2, "hammer": 0.6},
    barrel.TICK: {"stick": 1.0},
}
THUD = Partial(62.0, _THUD)


@dataclass(frozen=True, slots=True)
class _Noise:
    fade_s: float
    smooth: int
    gain: float
    bright: bool = False
    pan: float = 0.0
    seed: int = 0


STROKES = {
    "hammer": _Noise(0.0025, 6, 0.35, seed=0),
    "breath": _Noise(0.004, 3, 0.12, seed=1),
    "stick": _Noise(0.0026, 3, 0.2, bright=True, pan=-0.5, seed=2),
}


def hertz(note: int) -> float:
    """Equal temperament, MIDI number 69 at 440 Hz."""
    return float(440.0 * 2 ** ((note - 69) / 12))


def melody_partial(name: str, tooth: int) -> Partial:
    """A partial of a melody tooth; low ones lie left of the middle, high ones right."""
    ratio, fading, pan = MELODY_PARTIALS[name]
    spread = 0.5 * (2 * tooth / (len(barrel.MELODY) - 1) - 1)
    return Partial(ratio * hertz(barrel.MELODY_LOW + tooth), fading, spread + pan)


def accompaniment_partial(name: str, tooth: int) -> Partial:
    """A partial of an accompaniment tooth, an electric piano's."""
    ratio, fading, pan = ACCOMPANIMENT_PARTIALS[name]
    return Partial(ratio * hertz(barrel.ACCOMPANIMENT_LOW + tooth), fading, pan)


def bass_partial(tooth: int) -> Partial:
    """The bass at an accompaniment tooth's pitch class."""
    low = barrel.BASS_LOW
    return Partial(hertz(low + (barrel.ACCOMPANIMENT_LOW + tooth - low) % 12), _DEEP)


def partial_kernel(partial: Partial) -> tuple[Array, Array]:
    """What a phasor's real and imaginary parts sound like for two ring frames, [2, 2 * RING_HOP] each (left, right)."""
    at = np.arange(2 * RING_HOP)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (at + 0.5) / (2 * RING_HOP))
    turn: npt.NDArray[np.complex128] = np.exp(2j * np.pi * partial.hertz * (at - RING_HOP) / SAMPLE_RATE)
    sides = _sides(partial.pan)[:, None]
    return (sides * LEVEL * window * turn.real).astype(np.float32), (-sides * LEVEL * window * turn.imag).astype(
        np.float32
    )


def _sides(pan: float) -> npt.NDArray[np.float64]:
    """Gains of left and right, of equal power at every place."""
    return np.sqrt(0.5 * np.array([1 - pan, 1 + pan]))


def stroke_kernel(name: str) -> Array:
    """A stroke of noise of at most two ring frames (12 ms), [2, 2 * RING_HOP]; each side has noise of its own."""
    noise = STROKES[name]
    dull = np.random.default_rng(noise.seed).standard_normal((2, 2 * RING_HOP + 64))
    dull = np.apply_along_axis(np.convolve, 1, dull, np.ones(noise.smooth) / np.sqrt(noise.smooth), "same")
    shaped = np.diff(dull, axis=1, prepend=0.0) if noise.bright else dull
    at = np.arange(2 * RING_HOP) / SAMPLE_RATE
    onset = RING_HOP * 0.6 / SAMPLE_RATE
    left = np.clip((at[-1] - at) / 0.002, 0, 1)  # until it must be over
    shape = np.clip((at - onset) / 0.0007, 0, 1) * np.exp(-np.maximum(at - onset, 0) / noise.fade_s) * left
    sound: npt.NDArray[np.float64] = (
        LEVEL * noise.gain * shape * shaped[:, : 2 * RING_HOP] * _sides(noise.pan)[:, None] * np.sqrt(2)
    )
    return sound.astype(np.float32)
