"""Encoding of songs, deterministic for equal samples and tags; loudness by EBU R128 (ITU-R BS.1770-4)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream

from serinette.errors import InvalidOutput
from serinette.media.formats import CODINGS, Coding, encoded_rate
from serinette.spec import AudioFormat

Samples = npt.NDArray[np.float32]

# BS.1770-4 measures in blocks of 400 ms: a shorter clip has no loudness.
_BLOCK_S = 0.4
# Streaming platforms and EBU R128 require 1 dB of headroom below full scale.
PEAK = 10.0 ** (-1.0 / 20.0)


def encode(
    samples: Samples,
    sample_rate: int,
    format: AudioFormat,
    *,
    bitrate_kbps: int | None = None,
    tags: Mapping[str, str] | None = None,
) -> bytes:
    """Encode float32 [channels, frames] of -1 to 1, 1 or 2 channels; louder samples are clipped.

    The file's rate is `encoded_rate(format, sample_rate)`. `bitrate_kbps` is for mp3, ogg and m4a, and capped at the
    codec's maximum. Besides the arguments, only FFmpeg's version determines the bytes.

    Raises:
        InvalidOutput: there are no samples, or some are not finite.
    """
    channels, frames = samples.shape
    if not frames or not np.isfinite(samples).all():
        raise InvalidOutput("the song holds no samples, or some that are not finite: there is nothing to encode")
    coding = CODINGS[format]
    file = io.BytesIO()
    with av.open(file, "w", format=coding.container, options=dict(coding.container_options)) as container:
        container.metadata.update({name: text for name, text in (tags or {}).items() if text})
        stream = container.add_stream(
            coding.codec, encoded_rate(format, sample_rate), options=dict(coding.codec_options)
        )
        assert isinstance(stream, AudioStream)  # noqa: S101  # all codecs of CODINGS are audio codecs
        stream.layout = "mono" if channels == 1 else "stereo"
        stream.format = coding.sample_format
        if coding.bitrate_kbps:
            stream.bit_rate = 1000 * _bitrate_kbps(coding, bitrate_kbps, channels)
        for frame in _frames(samples, sample_rate):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _bitrate_kbps(coding: Coding, wanted: int | None, channels: int) -> int:
    bitrate = wanted or coding.bitrate_kbps or 0
    return min(bitrate, coding.max_kbps_per_channel * channels)


def _frames(samples: Samples, sample_rate: int) -> Iterator[av.AudioFrame]:
    """Frames of one second, so that a long song is not copied as a whole."""
    layout = "mono" if samples.shape[0] == 1 else "stereo"
    for start in range(0, samples.shape[1], sample_rate):
        part = np.clip(samples[:, start : start + sample_rate], -1.0, 1.0).astype(np.float32, order="C")
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate = sample_rate
        frame.time_base = Fraction(1, sample_rate)
        frame.pts = start  # needed for m4a's edit list, which hides the codec's delay
        yield frame


def to_loudness(samples: Samples, sample_rate: int, target_lufs: float) -> tuple[Samples, str | None]:
    """Scale samples [channels, frames] to `target_lufs` by one gain, with peaks of at most -1 dBFS.

    Returns the samples and, if the target is not reached, why: silence, shorter than 0.4 s, or peaks.
    """
    if samples.shape[-1] < _BLOCK_S * sample_rate:
        return samples, f"loudness_lufs: left alone, a song shorter than {_BLOCK_S} s has no loudness"
    lufs = measured_lufs(samples, sample_rate)
    if not math.isfinite(lufs):
        return samples, "loudness_lufs: left alone, the song is silent"
    gain = 10.0 ** ((target_lufs - lufs) / 20.0)
    peak = float(np.abs(samples).max())
    if peak * gain <= PEAK:
        return samples * np.float32(gain), None
    reached = lufs + 20.0 * math.log10(PEAK / peak)
    return (
        samples * np.float32(PEAK / peak),
        f"loudness_lufs: {reached:.1f} instead of {target_lufs:g}, more would clip its peaks",
    )


def measured_lufs(samples: Samples, sample_rate: int) -> float:
    """Integrated loudness in LUFS of samples [channels, frames] of at least 0.4 s; -inf for silence."""
    import pyloudnorm  # noqa: PLC0415  # imports scipy, 40 MB that only jobs with a loudness need

    return float(pyloudnorm.Meter(sample_rate).integrated_loudness(samples.T.astype(np.float64)))
