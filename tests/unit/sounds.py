"""Sounds, and things that only pretend to be, for the tests of media and probe."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

Samples = npt.NDArray[np.float32]


def tone(duration_s: float, sample_rate: int = 48_000, channels: int = 2) -> Samples:
    """Two chords, different left and right, at half level."""
    time_s = np.arange(round(duration_s * sample_rate)) / sample_rate
    pitches = (440.0, 550.0)[:channels]
    return np.stack([0.5 * np.sin(2 * np.pi * pitch * time_s) for pitch in pitches]).astype(np.float32)


def packed(container: str, codec: str, samples: Iterable[Samples], sample_rate: int, layout: str = "stereo") -> bytes:
    """A file of any container and codec of FFmpeg."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, sample_rate)
        assert isinstance(stream, AudioStream)
        stream.layout = layout
        for part in samples:
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
            frame.sample_rate = sample_rate
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def silence(duration_s: int, container: str = "flac", codec: str = "flac", sample_rate: int = 8_000) -> bytes:
    """Silence, hours of which fit into a megabyte."""
    minute = np.zeros((1, 60 * sample_rate), np.float32)
    return packed(container, codec, (minute for _ in range(duration_s // 60)), sample_rate, "mono")


def video() -> bytes:
    """A second of pictures without sound."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", 10)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(10):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def png() -> bytes:
    """A white pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\xff")) + chunk(b"IEND", b"")
    )


def with_cover(mp3: bytes) -> bytes:
    """An mp3 with a picture, as every shop sells it."""
    picture = b"\0image/png\0\x03\0" + png()
    frame = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + frame + mp3


def wav(data: bytes, *, sample_rate: int = 48_000, channels: int = 2, claimed_bytes: int | None = None) -> bytes:
    """A WAV whose header may lie."""
    claim = len(data) if claimed_bytes is None else claimed_bytes
    rate = (sample_rate * channels * 2) & 0xFFFFFFFF
    form = struct.pack("<HHIIHH", 1, channels, sample_rate, rate, (channels * 2) & 0xFFFF, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 0xFFFFFFFF)
        + b"WAVEfmt \x10\0\0\0"
        + form
        + b"data"
        + struct.pack("<I", claim)
        + data
    )


def flac_that_claims_years(flac: bytes) -> bytes:
    """A FLAC whose header has all 36 bits of its sample count set."""
    lying = bytearray(flac)
    lying[21] |= 0x0F
    lying[22:26] = b"\xff" * 4
    return bytes(lying)
