"""Codecs and containers of the spec's formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from serinette.spec import AudioFormat, RecordModel


class AudioInfo(RecordModel):
    """Properties of an audio file after it was decoded to its end."""

    duration_s: float
    sample_rate: int
    channels: int
    codec: str
    container: str


@dataclass(frozen=True, slots=True)
class Coding:
    """FFmpeg's names for one format. `rates`: sample rates that the codec supports; empty means any."""

    content_type: str
    container: str
    codec: str
    sample_format: str
    bitrate_kbps: int | None = None
    max_kbps_per_channel: int = 320
    rates: tuple[int, ...] = ()
    codec_options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)


# mp3's compression level 7 takes 0.6 of the default's time; Ogg has a random serial number unless bitexact; libopus
# refuses more than 256 kbit/s per channel.
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
CODINGS: Mapping[AudioFormat, Coding] = MappingProxyType(
    {
        AudioFormat.WAV: Coding("audio/wav", "wav", "pcm_s16le", "s16"),
        AudioFormat.FLAC: Coding("audio/flac", "flac", "flac", "s16"),
        AudioFormat.MP3: Coding(
            "audio/mpeg", "mp3", "libmp3lame", "fltp", 192, rates=_MP3_RATES, codec_options={"compression_level": "7"}
        ),
        AudioFormat.OGG: Coding(
            "audio/ogg", "ogg", "libopus", "flt", 128, 256, (48000,), container_options={"fflags": "+bitexact"}
        ),
        AudioFormat.M4A: Coding("audio/mp4", "ipod", "aac", "fltp", 160, rates=(*_MP3_RATES, 64000, 88200, 96000)),
    }
)

CONTENT_TYPES: Mapping[AudioFormat, str] = MappingProxyType({name: it.content_type for name, it in CODINGS.items()})
EXTENSIONS: Mapping[AudioFormat, str] = MappingProxyType({name: name.value for name in AudioFormat})


def encoded_rate(format: AudioFormat, sample_rate: int) -> int:
    """Sample rate in Hz of a file of this format: `sample_rate`, or the codec's next higher one, or its highest."""
    rates = CODINGS[format].rates
    if not rates or sample_rate in rates:
        return sample_rate
    return min((rate for rate in rates if rate > sample_rate), default=rates[-1])
