"""Reading audio that others made: bounded in time and memory, and never a raw FFmpeg error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer

from serinette.errors import InvalidAudio

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file turned out to hold once decoded to its end."""

    duration_s: float
    sample_rate: int
    channels: int
    codec: str
    container: str


def probe(file: Path | BinaryIO, max_duration_s: float) -> AudioInfo:
    """Decode a file to its end, keeping nothing.

    Raises:
        InvalidAudio: it is not audio, holds no samples, or is longer than `max_duration_s`.
    """
    with opened(file) as container:
        stream = container.streams.audio[0]
        seconds, rate, channels = 0.0, 0, 0
        for frame in container.decode(stream):
            rate, channels = frame.sample_rate, frame.layout.nb_channels
            seconds = _within(seconds + frame.samples / rate, max_duration_s)
        if not seconds:
            raise InvalidAudio("the file holds no audio samples")
        return AudioInfo(seconds, rate, channels, stream.codec_context.name, container.format.name)


def decode(file: Path | BinaryIO, sample_rate: int, channels: int, max_duration_s: float) -> Samples:
    """Decode a file to float32 [channels, frames] at `sample_rate` Hz, 1 or 2 channels.

    Raises:
        InvalidAudio: it is not audio, holds no samples, or is longer than `max_duration_s`.
    """
    with opened(file) as container:
        resampler = av.AudioResampler("fltp", "mono" if channels == 1 else "stereo", sample_rate)
        parts = []
        frames = 0
        for frame in (*container.decode(audio=0), None):
            for part in resampler.resample(frame):
                frames += part.samples
                _within(frames / sample_rate, max_duration_s)
                parts.append(part.to_ndarray())
    if not frames:
        raise InvalidAudio("the file holds no audio samples")
    return np.concatenate(parts, axis=1).astype(np.float32, copy=False)


def _within(seconds: float, max_duration_s: float) -> float:
    if seconds > max_duration_s:
        raise InvalidAudio(f"the audio is longer than the {max_duration_s:g} s allowed; send a shorter piece")
    return seconds


@contextmanager
def opened(file: Path | BinaryIO) -> Iterator[InputContainer]:
    """A container with at least one audio stream; FFmpeg's complaints become InvalidAudio."""
    try:
        with av.open(str(file) if isinstance(file, Path) else file) as container:
            if not container.streams.audio:
                raise InvalidAudio("the file holds no audio track")
            yield container
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise InvalidAudio(f"the file is not audio that can be decoded: {error}") from error
