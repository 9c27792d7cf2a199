"""Loudness by EBU R128 (ITU-R BS.1770-4): measured where the samples lie when torchaudio is there, else on the CPU."""

from __future__ import annotations

import functools
import importlib
import logging
import math
from collections.abc import Callable

import pyloudnorm
from torch import Tensor

log = logging.getLogger(__name__)

# BS.1770-4 measures in blocks of 400 ms: a shorter clip has no loudness.
_BLOCK_S = 0.4
# Streaming platforms and EBU R128 ask for 1 dB of room below full scale.
PEAK = 10.0 ** (-1.0 / 20.0)

Meter = Callable[[Tensor, int], float]


def to_loudness(samples: Tensor, sample_rate: int, target_lufs: float) -> tuple[Tensor, str | None]:
    """Bring samples [channels, frames] to `target_lufs` by one gain, their peak at most -1 dBFS.

    Answers the samples and, when the target is not met, why: silence, shorter than 0.4 s, or peaks in the way.
    """
    if samples.shape[-1] < _BLOCK_S * sample_rate:
        return samples, f"loudness_lufs: left alone, a song shorter than {_BLOCK_S} s has no loudness"
    lufs = meter()(samples, sample_rate)
    if not math.isfinite(lufs):
        return samples, "loudness_lufs: left alone, the song is silent"
    gain = 10.0 ** ((target_lufs - lufs) / 20.0)
    peak = float(samples.abs().max())
    if peak * gain <= PEAK:
        return samples * gain, None
    reached = lufs + 20.0 * math.log10(PEAK / peak)
    return samples * (
        PEAK / peak
    ), f"loudness_lufs: {reached:.1f} instead of {target_lufs:g}, more would clip its peaks"


@functools.cache
def meter() -> Meter:
    """The meter of this installation, chosen once."""
    try:
        loudness = importlib.import_module("torchaudio.functional").loudness
    except (ImportError, OSError):  # a CUDA build of torchaudio fails to link beside a CPU-only torch
        log.info("torchaudio cannot be used here: loudness is measured on the CPU by pyloudnorm")
        return measure_on_cpu
    return lambda samples, sample_rate: float(loudness(samples, sample_rate))


def measure_on_cpu(samples: Tensor, sample_rate: int) -> float:
    """Integrated loudness in LUFS of samples [channels, frames] of at least 0.4 s; -inf for silence."""
    return float(pyloudnorm.Meter(sample_rate).integrated_loudness(samples.double().cpu().numpy().T))
