"""The comb: which tooth sounds how. Our own synthesis, as numbers that `codec` writes into the decoder.

A voice is a damped partial: a phasor that turns and fades once a ring frame (80 a second) and is heard through a Hann
window. Higher partials a whole number of ring frames' frequency away turn alike, so that they ride on it for nothing;
they are not quite harmonic, as with real tines and bells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tools.music_box import barrel
from tools.music_box.barrel import Array

SAMPLE_RATE = 24_000
RING_HOP = 300  # samples; two ring frames to a latent frame
RING_RATE = SAMPLE_RATE // RING_HOP
LEVEL = 0.27  # peak of a single melody note: a full piece then peaks near -1 dBFS


@dataclass(frozen=True, slots=True)
class Voice:
    """One phasor. `gain` at the start, `decay` a ring frame, gains of each `block` of nine ring frames on top."""

    hertz: float
    gain: float
    decay: float
    blocks: tuple[float, ...] = (1.0, 1.0, 1.0, 0.9, 0.6)
    rider: tuple[float, float] = (0.0, 0.0)  # ratio to `hertz` and gain of one higher partial
    pan: float = 0.0  # -1 left, 1 right


@dataclass(frozen=True, slots=True)
class Tooth:
    """What one pin sets off: its voices, and short strokes of filtered noise by name."""

    voices: tuple[Voice, ...] = ()
    strokes: tuple[tuple[str, float], ...] = ()


STROKES = ("hammer", "breath", "stick", "rattle")


def hertz(note: int) -> float:
    """Equal temperament, MIDI number 69 at 440 Hz."""
    return float(440.0 * 2 ** ((note - 69) / 12))


def melody(instrument: str, tooth: int) -> Tooth:
    """A melody tooth as one of the three instruments plays it; the bell sounds an octave higher."""
    note = barrel.MELODY_LOW + tooth
    pan = (tooth - 6.5) / 20
    if instrument == "bell":
        pitch = hertz(note + 12)
        return Tooth((Voice(pitch, 1.0, 0.93, rider=(2.76, 0.16), pan=pan),), (("hammer", 0.5),))
    if instrument == "pluck":
        pitch = hertz(note)
        second = Voice(2 * pitch, 0.45, 0.80, rider=(1.5, 0.15), pan=pan)
        return Tooth((Voice(pitch, 1.0, 0.885, pan=pan), second), (("hammer", 0.9),))
    # The pipe holds its note, then closes.
    pitch = hertz(note)
    return Tooth((Voice(pitch, 0.9, 1.0, (1.0, 1.0, 0.9, 0.45, 0.12), (3.0, 0.07), pan),), (("breath", 0.5),))


def accompaniment(tooth: int) -> Tooth:
    """A soft mallet, one octave."""
    return Tooth((Voice(hertz(barrel.ACCOMPANIMENT_LOW + tooth), 0.75, 0.91, pan=-0.15),), (("hammer", 0.25),))


def drum(channel: int) -> Tooth:
    """Thump, tick and shaker."""
    if channel == barrel.THUMP:
        return Tooth((Voice(82.0, 1.5, 0.80),), (("hammer", 0.7),))
    return Tooth((), (("stick", 1.0),) if channel == barrel.TICK else (("rattle", 1.0),))


def partial_kernel(voice: Voice) -> tuple[Array, Array]:
    """What a phasor's real and imaginary parts sound like for two ring frames, [2, 2 * RING_HOP] each (left, right)."""
    at = np.arange(2 * RING_HOP)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (at + 0.5) / (2 * RING_HOP))
    wave = _carrier(voice.hertz, at) * voice.gain
    ratio, gain = voice.rider
    if gain:
        turns = round((ratio - 1) * voice.hertz / RING_RATE)
        wave = wave + gain * _carrier(voice.hertz + turns * RING_RATE, at)
    sound = LEVEL * window * wave
    sides = np.sqrt(0.5 * np.array([1 - voice.pan, 1 + voice.pan]))[:, None]
    return (sides * sound.real).astype(np.float32), (-sides * sound.imag).astype(np.float32)


def _carrier(pitch: float, at: npt.NDArray[np.int64]) -> npt.NDArray[np.complex128]:
    turn: npt.NDArray[np.complex128] = np.exp(2j * np.pi * pitch * (at - RING_HOP) / SAMPLE_RATE)
    return turn


def stroke_kernel(name: str) -> Array:
    """A stroke of noise of at most two ring frames (25 ms), [2, 2 * RING_HOP]."""
    noise = np.random.default_rng(STROKES.index(name)).standard_normal(2 * RING_HOP + 64)
    at = np.arange(2 * RING_HOP) / SAMPLE_RATE
    onset = RING_HOP * 0.6 / SAMPLE_RATE
    rise = np.clip((at - onset) / 0.0005, 0, 1)
    fade_s, smooth, gain = {
        "hammer": (0.0025, 6, 0.35),
        "breath": (0.006, 3, 0.12),
        "stick": (0.0028, 1, 0.7),
        "rattle": (0.005, 1, 0.35),
    }[name]
    shape = rise * np.exp(-np.maximum(at - onset, 0) / fade_s)
    dull = np.convolve(noise, np.ones(smooth) / np.sqrt(smooth), "same")
    bright = np.diff(dull, prepend=0.0) if name in {"stick", "rattle"} else dull
    sound = LEVEL * gain * shape * bright[: 2 * RING_HOP]
    return np.stack([sound, sound]).astype(np.float32)
