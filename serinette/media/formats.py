"""What each format of a spec is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from serinette.spec import AudioFormat


@dataclass(frozen=True, slots=True)
class Coding:
    """FFmpeg's names for one format. `rates`: sample rates the codec takes, empty meaning any."""

    content_type: str
    container: str
    codec: str
    sample_format: str
    bitrate_kbps: int | None = None
    rates: tuple[int, ...] = ()
    codec_options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)


# Bitrates: transparent for stereo by common listening tests of the codec. mp3's level 7 takes 0.6 of the default's time.
# Ogg draws its stream serial at random unless bitexact.
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
CODINGS: Mapping[AudioFormat, Coding] = MappingProxyType(
    {
        AudioFormat.WAV: Coding("audio/wav", "wav", "pcm_s16le", "s16"),
        AudioFormat.FLAC: Coding("audio/flac", "flac", "flac", "s16"),
        AudioFormat.MP3: Coding(
            "audio/mpeg", "mp3", "libmp3lame", "fltp", 192, _MP3_RATES, codec_options={"compression_level": "7"}
        ),
        AudioFormat.OGG: Coding(
            "audio/ogg", "ogg", "libopus", "flt", 128, (48000,), container_options={"fflags": "+bitexact"}
        ),
        AudioFormat.M4A: Coding("audio/mp4", "ipod", "aac", "fltp", 160, (*_MP3_RATES, 64000, 88200, 96000)),
    }
)

CONTENT_TYPES: Mapping[AudioFormat, str] = MappingProxyType({name: it.content_type for name, it in CODINGS.items()})
EXTENSIONS: Mapping[AudioFormat, str] = MappingProxyType({name: name.value for name in AudioFormat})


def encoded_rate(format: AudioFormat, sample_rate: int) -> int:
    """Sample rate in Hz of a file of this format: `sample_rate`, or the codec's nearest one not below it."""
    rates = CODINGS[format].rates
    if not rates or sample_rate in rates:
        return sample_rate
    return min((rate for rate in rates if rate > sample_rate), default=rates[-1])
