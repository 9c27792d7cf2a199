"""What can be heard in a sound: key, tempo, tones, noise and loudness by kept libraries; stereo, end and clicks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import librosa
import numpy as np
import numpy.typing as npt
from librosa.onset import onset_strength

from serinette.media.encoding import measured_lufs
from tools.music_box import comb
from tools.music_box.composer import MAJOR, MINOR

Sound = npt.NDArray[np.float32]  # [channels, samples] at comb.SAMPLE_RATE
_Floats = npt.NDArray[Any]

# Krumhansl and Kessler's probe-tone ratings (1982), major and minor, from the tonic.
_PROFILES = {
    False: (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    True: (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
}
_FFT, _HOP = 8192, 2048
_END_S = 0.1
_ONSET_HOP = 128  # 5 ms: a tempo's lag is known to 1.5 % and better


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one sound. Shares are 0 to 1."""

    key: str
    key_found: bool
    bpm: float
    tempo_found: bool
    tonal: float  # share of power in spectral peaks
    flatness: float  # mean over frames that are not quiet
    in_key: float  # share of chroma on the scale's notes
    silent: bool
    clipping: bool
    lufs: float
    side_db: float  # power of left minus right over that of left plus right
    end_db: float  # peak of the last 0.1 s over the song's
    jump: float  # largest step from a sample to the next, of full scale


def measure(sound: Sound, tonic: int, minor: bool, bpm: float) -> Measures:
    """Measure a sound against what was asked."""
    mono = sound.mean(axis=0)
    spectrum = np.abs(librosa.stft(mono, n_fft=_FFT, hop_length=_HOP))
    chroma = _chroma(spectrum).sum(axis=1)
    heard = key_of(chroma)
    tempo = tempo_of(mono)
    scale = [(tonic + step) % 12 for step in (MINOR if minor else MAJOR)]
    return Measures(
        key=f"{heard[0]} {'minor' if heard[1] else 'major'}",
        key_found=heard == (tonic, minor),
        bpm=tempo,
        tempo_found=min(abs(tempo * fold / bpm - 1) for fold in (0.25, 0.5, 1, 2, 4)) < 0.04,
        tonal=_tonal(spectrum),
        flatness=_flatness(mono),
        in_key=float(chroma[scale].sum() / chroma.sum()),
        silent=bool(np.sqrt(np.mean(mono**2)) < 0.01),
        clipping=bool(np.mean(np.abs(sound) > 0.999) > 0.0001),
        lufs=measured_lufs(sound, comb.SAMPLE_RATE),
        side_db=_decibel(np.sum((sound[0] - sound[1]) ** 2), np.sum((sound[0] + sound[1]) ** 2)),
        end_db=2 * _decibel(np.abs(sound[:, -round(_END_S * comb.SAMPLE_RATE) :]).max(), np.abs(sound).max()),
        jump=float(np.abs(np.diff(sound, axis=1)).max()),
    )


def _decibel(power: float, over: float) -> float:
    return float(10 * np.log10(max(power, 1e-12) / max(over, 1e-12)))


def key_of(chroma: _Floats) -> tuple[int, bool]:
    """Tonic and mode by Krumhansl and Schmuckler: the profile that correlates best."""
    fits = {
        (tonic, minor): np.corrcoef(np.roll(profile, tonic), chroma)[0, 1]
        for minor, profile in _PROFILES.items()
        for tonic in range(12)
    }
    return max(fits, key=lambda one: fits[one])


def tempo_of(mono: _Floats) -> float:
    """Beats per minute by librosa's tempogram, with its own prior."""
    onsets = onset_strength(y=mono, sr=comb.SAMPLE_RATE, hop_length=_ONSET_HOP, n_fft=1024)
    found = librosa.feature.tempo(onset_envelope=onsets, sr=comb.SAMPLE_RATE, hop_length=_ONSET_HOP, ac_size=8.0)
    return float(found[0])


def likeness(one: Sound, other: Sound) -> float:
    """Correlation of two chroma sequences, each about its own mean chroma's level."""
    first, second = (
        _chroma(np.abs(librosa.stft(sound.mean(axis=0), n_fft=_FFT, hop_length=_HOP))) for sound in (one, other)
    )
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def _chroma(spectrum: _Floats) -> _Floats:
    chroma: _Floats = librosa.feature.chroma_stft(S=spectrum, sr=comb.SAMPLE_RATE, n_fft=_FFT, tuning=0.0, norm=None)
    return chroma


def _tonal(spectrum: _Floats) -> float:
    power = spectrum**2
    middle = power[1:-1]
    peak = (middle > power[:-2]) & (middle > power[2:]) & (middle > 8 * np.median(power, axis=0))
    near = np.zeros(power.shape, bool)
    for shift in range(3):
        near[shift : shift + len(peak)] |= peak
    return float((power * near).sum() / max(power.sum(), 1e-12))


def _flatness(mono: _Floats) -> float:
    spectrum = np.abs(librosa.stft(mono, n_fft=2048, hop_length=512))
    loud = spectrum.sum(axis=0) > 0.03 * spectrum.sum(axis=0).max()
    return float(librosa.feature.spectral_flatness(S=spectrum[:, loud], power=2.0).mean())
