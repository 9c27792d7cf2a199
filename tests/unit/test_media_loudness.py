"""Loudness by the standard, and what a song that cannot come to its target is told."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from serinette.media.loudness import PEAK, measured_lufs, to_loudness

RATE = 48_000


def tone(hertz: float, seconds: float, level: float = 0.1) -> npt.NDArray[np.float32]:
    """Stereo [2, frames]."""
    wave = level * np.sin(2 * np.pi * hertz / RATE * np.arange(round(seconds * RATE)))
    return np.stack([wave, wave]).astype(np.float32)


def test_the_meter_reads_what_the_standard_says() -> None:
    # BS.1770-4: a 997 Hz sine at full scale in one channel reads -3.01 LUFS.
    one_sided = tone(997, 5, level=1.0)
    one_sided[1] = 0
    assert measured_lufs(one_sided, RATE) == pytest.approx(-3.01, abs=0.05)


@pytest.mark.parametrize("target", [-23.0, -14.0])
def test_a_song_comes_to_the_target(target: float) -> None:
    samples, complaint = to_loudness(tone(440, 3), RATE, target)
    assert complaint is None
    assert samples.dtype == np.float32
    assert measured_lufs(samples, RATE) == pytest.approx(target, abs=0.05)


def test_peaks_in_the_way_limit_the_gain() -> None:
    loud = tone(440, 3)
    loud[:, RATE] = 0.9
    samples, complaint = to_loudness(loud, RATE, -6.0)
    assert float(np.abs(samples).max()) == pytest.approx(PEAK, abs=1e-6)
    assert complaint is not None
    assert f"{measured_lufs(samples, RATE):.1f} instead of -6" in complaint


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        (np.zeros((2, RATE), np.float32), "silent"),
        (tone(440, 0.3), "shorter"),
        (tone(440, 3, level=1e-6), "silent"),
    ],
)
def test_what_has_no_loudness_is_left_alone(samples: npt.NDArray[np.float32], why: str) -> None:
    same, complaint = to_loudness(samples, RATE, -14.0)
    assert np.array_equal(same, samples)
    assert complaint is not None
    assert why in complaint
