"""Decoding of untrusted audio: bounded in time and memory, no other files opened, no raw FFmpeg errors."""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer

from serinette.errors import InvalidAudio
from serinette.media.formats import AudioInfo

Samples = npt.NDArray[np.float32]

# Playlists (hls, concat, dash, sdp ...) would make FFmpeg open other files or URLs: only these containers are read.
_CONTAINERS = "wav,w64,aiff,caf,flac,mp3,aac,ogg,mov,matroska"
_CODECS = (
    "mp3float,mp3,aac,alac,flac,opus,libopus,vorbis,pcm_u8,pcm_alaw,pcm_mulaw,"
    "pcm_s16le,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le,pcm_s8,pcm_s16be,pcm_s24be,pcm_s32be,pcm_f32be,pcm_f64be"
)
_OPTIONS = {"format_whitelist": _CONTAINERS, "codec_whitelist": _CODECS, "protocol_whitelist": "file"}

# Outside of these ranges a resampler's filter takes gigabytes, and there are no real recordings.
_RATES = range(4_000, 384_001)
_CHANNELS = range(1, 9)
# Codecs pad their last block: a generated song of the longest duration must be accepted as an upload.
_PADDING_S = 0.1
# Samples of all channels that a file may have for each second that it may last: stereo at 192 kHz, or eight channels at
# 48 kHz, for the whole length. A file of a few kB can hold a thousand times as many samples.
_SAMPLES_A_SECOND = 384_000
# Shorter audio is useless to a model, and a resampler may return no samples.
_SHORTEST_S = 0.01
# 40 dB above full scale, which float formats can express: louder samples are not a recording.
_LOUDEST = 100.0
# The format chunk of a WAV is within these bytes, even with an editor's chunks before it.
_HEAD_BYTES = 64 * 1024
_EXTENSIBLE = 0xFFFE


def probe(file: Path | BinaryIO, max_duration_s: float) -> AudioInfo:
    """Decode a file to its end without keeping its samples.

    Raises:
        InvalidAudio: it is not audio, has no samples or some are not finite, is shorter than 0.01 s, or longer
            than `max_duration_s`.
    """
    with opened(file) as container:
        frames, first = 0, None
        for frame in _frames(container, max_duration_s):
            first = first or frame
            frames += frame.samples
        if first is None:
            raise InvalidAudio("the file holds no audio samples")
        _check_length(frames, first.sample_rate)
        return AudioInfo(
            duration_s=frames / first.sample_rate,
            sample_rate=first.sample_rate,
            channels=first.layout.nb_channels,
            codec=container.streams.audio[0].codec.canonical_name,
            container=container.format.name,
        )


def decode(file: Path | BinaryIO, sample_rate: int, channels: int, max_duration_s: float) -> Samples:
    """Decode a file to float32 [channels, frames] at `sample_rate` Hz, 1 or 2 channels.

    Mono becomes two equal channels at full level, stereo becomes their mean; more channels are mixed down to stereo.

    Raises:
        InvalidAudio: as `probe`.
    """
    parts: list[Samples] = []
    with opened(file) as container:
        resampler: av.AudioResampler | None = None
        for frame in _frames(container, max_duration_s):
            layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
            resampler = resampler or av.AudioResampler("fltp", layout, sample_rate)
            parts += map(_samples, resampler.resample(frame))
        if resampler is not None:
            parts += map(_samples, filter(None, resampler.resample(None)))
    if not parts:
        raise InvalidAudio("the file holds no audio samples")
    samples = np.concatenate(parts, axis=1)
    _check_length(samples.shape[1], sample_rate)
    if channels < len(samples):
        mixed: Samples = samples.mean(axis=0, keepdims=True)
        return mixed
    return np.repeat(samples, channels // len(samples), axis=0)


def _samples(frame: av.AudioFrame) -> Samples:
    return frame.to_ndarray().astype(np.float32, copy=False)


@contextmanager
def opened(file: Path | BinaryIO) -> Iterator[InputContainer]:
    """A container with at least one audio track; FFmpeg's errors, also later ones, become InvalidAudio."""
    try:
        with ExitStack() as stack:
            source = _readable(file, stack)
            container = stack.enter_context(av.open(source, "r", options=_OPTIONS, metadata_errors="replace"))
            if not container.streams.audio:
                raise InvalidAudio("the file holds no audio track")
            yield container
    except (av.FFmpegError, OSError, ValueError, IndexError, OverflowError, MemoryError) as error:
        raise InvalidAudio(
            "the file cannot be decoded as audio: it is broken, or of another kind; "
            "send a whole wav, flac, mp3, ogg, m4a, aiff or webm file"
        ) from error


def _frames(container: InputContainer, max_duration_s: float) -> Iterator[av.AudioFrame]:
    """Frames of the first audio track, all with the same format."""
    frames, kind = 0, None
    stream = container.streams.audio[0]
    floats = stream.codec.canonical_name.startswith("pcm_f")
    for frame in container.decode(stream):
        rate, channels = frame.sample_rate, frame.layout.nb_channels
        kind = kind or (rate, frame.layout.name, frame.format.name)
        if kind != (rate, frame.layout.name, frame.format.name):
            raise InvalidAudio("the file changes its sample rate or channels midway; send its parts as separate files")
        if rate not in _RATES or channels not in _CHANNELS:
            raise InvalidAudio(f"{channels} channels at {rate} Hz: at most 8 channels of 4 to 384 kHz are allowed")
        frames += frame.samples
        if frames > (max_duration_s + _PADDING_S) * rate:
            raise InvalidAudio(f"the audio is longer than the {max_duration_s:g} s allowed; send a shorter piece")
        if frames * channels > _SAMPLES_A_SECOND * (max_duration_s + _PADDING_S):
            longest_s = _SAMPLES_A_SECOND * max_duration_s / channels / rate
            raise InvalidAudio(
                f"{channels} channels at {rate} Hz may last {longest_s:.0f} s at most; send fewer channels, a lower "
                "rate or a shorter piece"
            )
        # `not ... <=` is also true for NaN.
        if floats and frame.samples and not float(np.abs(frame.to_ndarray()).max()) <= _LOUDEST:
            raise InvalidAudio(
                f"the file holds samples that are no numbers, or beyond {_LOUDEST:g} times full scale; write it anew"
            )
        if frame.samples:
            yield frame


def _check_length(frames: int, sample_rate: int) -> None:
    if frames < _SHORTEST_S * sample_rate:
        raise InvalidAudio(f"the audio lasts {frames / sample_rate:.3f} s; at least {_SHORTEST_S:g} s are needed")


def _readable(file: Path | BinaryIO, stack: ExitStack) -> str | BinaryIO:
    """The input for FFmpeg: the file itself, or a WAV whose number of valid bits is set to the size of its samples.

    In WAVs with 24 valid bits in samples of 32, as WASAPI records them, FFmpeg takes 24 for the sample's size and then
    decodes wrong values. The bits that are not valid are zero.
    """
    stream = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
    stream.seek(0)
    patch = _valid_bits(stream.read(_HEAD_BYTES))
    stream.seek(0)
    if patch is None:
        return f"file:{file.absolute()}" if isinstance(file, Path) else file
    place, bits = patch
    if isinstance(file, Path):  # in memory are only the pages that are changed
        patched: Any = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY))
    else:
        patched = io.BytesIO(stream.read())
    patched.seek(place)
    patched.write(bits)
    patched.seek(0)
    readable: BinaryIO = patched
    return readable


def _valid_bits(head: bytes) -> tuple[int, bytes] | None:
    """Offset of a WAV's number of valid bits and the bytes to write there; None if no patch is needed."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at = 12
    while at + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, at)
        if name == b"fmt ":
            if size < 40 or at + 28 > len(head):
                return None
            tag, bits, valid = (struct.unpack_from("<H", head, at + 8 + offset)[0] for offset in (0, 14, 18))
            return (at + 26, struct.pack("<H", bits)) if tag == _EXTENSIBLE and 0 < valid < bits else None
        at += 8 + size + size % 2
    return None
